"""The `gru` detector without torch: its forward pass in the compiled kernels of `models.engines.kernels`.

Differs from torch by float32 rounding (a few 1e-6 of a logit). A window's logit does not depend, to the bit, on the
windows it is computed with. It keeps scratch memory for no longer than a call, and the lock of the interpreter is
released while it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.compiled import plain
from models.engines import kernels, packing
from models.engines.dense import dense, dense_gelu
from models.engines.vectors import LANES
from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from models.weights import layer_width, weight_shapes

__all__ = ["NativeGru"]

CHUNK = 512  # windows between two layers, so that what passes between them stays in the second-level cache
# A code field that makes at most so many numbers is folded: a code's embedding times the input weights is added from
# a table, instead of being multiplied at every event. A larger table would not stay in the cache.
FOLDED_LIMIT = 65_536
PRESENT = VERDICT_FEATURES.index("present")


class NativeGru:
    """A trained `gru` detector. weights: its state_dict by torch's names, as numpy arrays.

    Raises ValueError naming a weight that is missing or has another shape than the inputs, `hidden` and `embedding`
    call for. Weights are copied.

    short: the recurrent products, most of the work, take int16 states and weights and are summed in int32. That costs
    1e-4 of a logit and saves a quarter of the time on processors with AVX512-VNNI; on others it saves nothing.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[np.float32]], inputs: InputSpec, hidden: int, embedding: int,
        short: bool = False,
    ) -> None:  # fmt: skip
        self._is_short = short
        self.inputs, self.width = inputs, layer_width(hidden)
        self._weights = _checked(weights, weight_shapes("gru", inputs, hidden, embedding))
        rows_K = np.array([rows for _, rows in inputs.codes], np.int64)
        w = self._weights
        self._events = kernels.EventInputs(
            w["x_mean_F"], 1.0 / w["x_std_F"], w["table.weight"], np.cumsum(rows_K) - rows_K, rows_K
        )
        self._from_zero = np.empty((0, self.width), np.float32)
        self._inverse_C = 1.0 / w["context_std_C"]
        self._gru = self._fold(embedding)
        self._verdicts = [self._verdict_gru(j) for j in range(len(inputs.verdicts))]
        self._layers = [packing.pack_dense(w[f"head.{n}.weight"], w[f"head.{n}.bias"]) for n in (0, 3, 5)]

    def logits(self, encoded: Encoded) -> NDArray[np.float32]:
        """logit_B, float32, of any number of windows of at most `inputs.length` events.

        What stands at masked positions and at absent verdicts is not read. A NaN elsewhere makes the logit NaN.
        Raises ValueError for arrays of other sizes than the inputs, and for a code that has no embedding.
        """
        self._check(encoded)
        return self._in_chunks(encoded, self._from_zero)

    def logits_after(self, past: Encoded, last: Encoded, past_V: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `models.engines.base.Engine.logits_after`: each past is run through once."""
        self._check(past)
        self._check(last)
        state_BH = np.zeros((len(past) + 1, self.width), np.float32)  # the last, at -1, is of no past
        before = _before_last(past)
        self._refuse_unknown(
            kernels.gru_states(*self._arrays(before), self._events, self._gru, self._from_zero, 0, state_BH)
        )
        return self._in_chunks(last, state_BH[past_V])

    def _in_chunks(self, encoded: Encoded, start_BH: NDArray[np.float32]) -> NDArray[np.float32]:
        """logit_B of windows whose states start as `start_BH` says, or at 0 where it has no rows."""
        logit_B = np.empty(len(encoded), np.float32)
        for begin in range(0, len(encoded), CHUNK):
            part = slice(begin, begin + CHUNK)
            logit_B[part] = self._chunk(encoded.take(part), start_BH[part], begin)
        return logit_B

    def _chunk(self, encoded: Encoded, start_BH: NDArray[np.float32], begin: int) -> NDArray[np.float32]:
        count, arrays = len(encoded), self._arrays(encoded)
        seen_BS = np.empty((count, self._weights["head.0.weight"].shape[1]), np.float32)
        self._refuse_unknown(kernels.gru_states(*arrays, self._events, self._gru, start_BH, 0, seen_BS), begin)
        column = self._sum_up(encoded.verdicts_BJSG, seen_BS)
        self._refuse_unknown(kernels.last_events(*arrays[:2], self._events, column, seen_BS), begin)
        context_BC = plain(encoded.context_BC, np.float32)
        kernels.context_columns(context_BC, self._weights["context_mean_C"], self._inverse_C, seen_BS)
        first_BH, second_BH = np.empty((count, self.width), np.float32), np.empty((count, self.width), np.float32)
        out_BJ = np.empty((count, LANES), np.float32)
        dense_gelu(self._layers[0], seen_BS, first_BH)
        dense_gelu(self._layers[1], first_BH, second_BH)
        dense(self._layers[2], second_BH, out_BJ)
        return out_BJ[:, 0]

    def _sum_up(self, verdicts_BJSG: NDArray[np.float32], seen_BS: NDArray[np.float32]) -> int:
        """Write each profile's state after its newest verdict beside those of the events; returns the next column."""
        column, (windows, _, verdicts, _) = self.width, verdicts_BJSG.shape
        no_codes = np.empty((windows, verdicts, 0), np.int32)
        for j, (events, gru) in enumerate(self._verdicts):
            verdict_BSG = plain(verdicts_BJSG[:, j], np.float32)
            there_BS = verdict_BSG[:, :, PRESENT] > 0
            kernels.gru_states(verdict_BSG, no_codes, there_BS, events, gru, self._from_zero, column, seen_BS)
            column += gru.width
        return column

    @staticmethod
    def _arrays(encoded: Encoded) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.bool_]]:
        return plain(encoded.x_BLF, np.float32), plain(encoded.codes_BLK, np.int32), plain(encoded.mask_BL, np.bool_)

    def _refuse_unknown(self, window: int, begin: int = 0) -> None:
        if window >= 0:
            sizes = ", ".join(f"{name} < {rows}" for name, rows in self.inputs.codes)
            raise ValueError(f"window {begin + window}: a code has no embedding: expected 0 or more and {sizes}")

    def _fold(self, embedding: int) -> kernels.GruWeights:
        """Packs the GRU, with the embeddings of small code fields multiplied in advance."""
        w, numbers = self._weights, len(self.inputs.x)
        rows_K, first_K = self._events.rows_K, self._events.first_row_K
        input_GD = w["trunk.gru.weight_ih_l0"]
        number_columns, code_columns = np.split(np.arange(input_GD.shape[1]), [numbers])
        columns_KE = code_columns.reshape(len(rows_K), embedding)
        is_folded_K = rows_K * len(input_GD) <= FOLDED_LIMIT
        fields = np.flatnonzero(is_folded_K)
        tables = [np.zeros((0, len(input_GD)), np.float32)]
        for k in fields:
            rows = self._events.table_NE[first_K[k] : first_K[k] + rows_K[k]].astype(np.float64)
            added_RG = rows @ input_GD[:, columns_KE[k]].T.astype(np.float64)
            # Like the weights: vector by vector of units, three gates each.
            by_vector = added_RG.reshape(len(rows), 3, -1, LANES).swapaxes(1, 2)
            tables.append(np.asarray(by_vector.reshape(len(rows), -1), np.float32))
        kept = np.concatenate([number_columns, columns_KE[~is_folded_K].ravel()])
        packed, short = self._pack("trunk", input_GD[:, kept])
        return kernels.GruWeights(
            self.width, packed, short, np.concatenate(tables), fields, np.cumsum(rows_K[fields]) - rows_K[fields],
            np.flatnonzero(~is_folded_K),
        )  # fmt: skip

    def _verdict_gru(self, j: int) -> tuple[kernels.EventInputs, kernels.GruWeights]:
        """How the verdicts of a profile are scaled, and the GRU that reads them; they have no codes."""
        w, part, none = self._weights, f"verdict_trunks.{j}", np.zeros(0, np.int64)
        input_GD = w[f"{part}.gru.weight_ih_l0"]
        packed, short = self._pack(part, input_GD)
        no_codes = np.zeros((0, len(input_GD)), np.float32)
        events = kernels.EventInputs(w["verdict_mean_JG"][j], 1.0 / w["verdict_std_JG"][j], no_codes, none, none)
        return events, kernels.GruWeights(len(input_GD) // 3, packed, short, no_codes, none, none, none)

    def _pack(self, part: str, input_GD: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """A GRU's weights as the kernels read them, and those of its state in int16, if they are wanted so."""
        names = ("weight_hh", "bias_ih", "bias_hh")
        state_GH, input_bias_G, state_bias_G = (self._weights[f"{part}.gru.{name}_l0"] for name in names)
        short, scale_G = packing.pack_short(state_GH) if self._is_short else (np.zeros(0, np.int16), None)
        return packing.pack_gru(input_GD, state_GH, input_bias_G, state_bias_G, scale_G), short

    def _check(self, encoded: Encoded) -> None:
        windows, length = encoded.mask_BL.shape
        if not 1 <= length <= self.inputs.length:
            raise ValueError(f"windows of {length} events: expected 1 to {self.inputs.length}")
        shapes = {
            "x_BLF": (encoded.x_BLF.shape, (windows, length, len(self.inputs.x))),
            "codes_BLK": (encoded.codes_BLK.shape, (windows, length, len(self.inputs.codes))),
            "context_BC": (encoded.context_BC.shape, (windows, len(self.inputs.context))),
            "verdicts_BJSG": (encoded.verdicts_BJSG.shape, (windows, *self.inputs.verdict_shape)),
        }
        for name, (actual, expected) in shapes.items():
            if actual != expected:
                raise ValueError(f"{name} has shape {actual}: expected {expected}")


def _before_last(encoded: Encoded) -> Encoded:
    return replace(
        encoded, x_BLF=encoded.x_BLF[:, :-1], codes_BLK=encoded.codes_BLK[:, :-1], mask_BL=encoded.mask_BL[:, :-1]
    )


def _checked(
    weights: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"weight {name} is missing: expected shape {shape}")
        if weights[name].shape != shape:
            raise ValueError(f"weight {name} has shape {weights[name].shape}: expected {shape}")
    return {name: np.array(weights[name], np.float32, order="C") for name in shapes}
