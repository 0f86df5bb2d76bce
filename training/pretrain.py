"""Pre-training: what events are like, learnt from all of them, before anybody says which were fraud.

Three tasks at once:

    forecast    from the trunk's state after an event, the next event: numbers by a Laplace likelihood, codes by
                cross-entropy; some fields of the window are hidden at random
    restore     from the state at an event, those of its fields that were hidden, likewise
    tell apart  by the whole detector, real events from those whose values are another entity's (`training.exchange`)

The heads of the first two are thrown away; all of the detector is kept but what reads verdicts (`training.pretrained`).
No label is read: only events come from the history, and the replay knows of no label.

Dimension letters: B windows, L events, F numbers, K codes, H states; N places of windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from models.clock import to_iso
from models.detectors import SequenceDetector
from models.detectors.base import tensors
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.pipeline.spec import Pipeline, without_labels
from training.archive import Archive
from training.dataset import sampled
from training.epochs import Loop
from training.errors import PretrainedError, TrainingError
from training.exchange import windows_of_exchanged
from training.pretrained import is_free, write_pretrained
from training.replay import chunks
from training.source import Source
from training.stored import open_history

__all__ = ["PretrainRecipe", "pretrain", "pretrain_history"]

Report = Callable[[str, int, int, str], None]  # as in `training.finetune`

LOG_SPREAD = (-3.0, 3.0)  # of a Laplace likelihood: a column of two values must not be worth infinitely much
MIN_WINDOWS = 32
TASKS = ("forecast", "restore", "exchange")
CHECKED = 0.05  # of the windows, the newest: to see what is learnt, not to train on


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """How to pre-train. Raises TrainingError for values that cannot work."""

    epochs: int = 4
    batch: int = 256
    learning_rate: float = 3e-3  # the peak of the cycle
    weight_decay: float = 1e-2
    average: float = 0.995
    hide: float = 0.15  # of the fields, each by itself
    max_windows: int = 100_000  # of real events, and about as many of exchanged ones
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "learning_rate", "max_windows", "threads"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"{name} = {getattr(self, name)}: expected above zero")
        if not (0 <= self.hide < 1 and 0 <= self.average < 1):
            raise TrainingError(f"hide = {self.hide}, average = {self.average}: expected at least 0 and below 1")


def pretrain(
    pipeline: Pipeline,
    history_root: Path,
    out: Path,
    *,
    end_ms: int | None = None,
    recipe: PretrainRecipe | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Pre-train on the events below `history_root` with clocks before `end_ms` (None: all); the result goes to `out`.

    Returns what was done, as in pretrained.json, and its version. Raises HistoryError, TrainingError,
    PretrainedError.
    """
    history = open_history(Archive(history_root, pipeline)).events_alone()
    last = history.end_ms()
    end_ms = last if end_ms is None else min(end_ms, last)
    return pretrain_history(history, end_ms, out, recipe=recipe or PretrainRecipe(), report=report)


def pretrain_history(
    history: Source, end_ms: int, out: Path, *, recipe: PretrainRecipe, report: Report | None = None
) -> dict[str, Any]:
    """As `pretrain`, for events that are loaded; the history's labels are not looked at."""
    architecture = history.pipeline.detector.architecture
    if without_labels(architecture):
        raise TrainingError(
            f"detector.architecture = {architecture!r}: expected one that learns from labels; those that do not are "
            "taught by finetune alone"
        )
    if not is_free(out):
        raise PretrainedError("exists", f"{out} is not empty: expected a new or empty folder")
    began, tell, pipeline = time.monotonic(), report or (lambda *_: None), history.pipeline
    real, changed = _windows(history, end_ms, recipe, lambda done, total: tell("replay", done, total, ""))
    spec = pipeline.detector
    torch.manual_seed(recipe.seed)
    detector = SequenceDetector(spec.architecture, Layout(pipeline).inputs, spec.hidden, spec.embedding)
    detector.fit_scaler(real)
    train, checked = _Windows.divide(real, changed)
    losses = _train(detector, train, checked, recipe, lambda epoch, note: tell("pre-train", epoch, recipe.epochs, note))
    facts = {
        "end": to_iso(end_ms), "windows": int((train.changed_N == 0).sum()), "exchanged": int(train.changed_N.sum()),
        **losses, **asdict(recipe), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    return {"version": write_pretrained(out, pipeline, detector, facts), **facts}


@dataclass(frozen=True, slots=True)
class _Windows:
    """N windows as a detector's arguments; changed_N: float32, 1 where the event was exchanged."""

    inputs: tuple[Tensor, ...]
    changed_N: Tensor

    @staticmethod
    def divide(real: Encoded, changed: Encoded) -> tuple[_Windows, _Windows]:
        """What is trained on, and the newest of both kinds, which are only checked."""
        kept, newest = zip(*(_cut(windows) for windows in (real, changed)), strict=True)
        return _Windows.of(*kept), _Windows.of(*newest)

    @staticmethod
    def of(real: Encoded, changed: Encoded) -> _Windows:
        changed_N = torch.cat([torch.zeros(len(real)), torch.ones(len(changed))])
        return _Windows(tensors(Encoded.concatenate([real, changed])), changed_N)

    def take(self, index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        return tuple(tensor[index] for tensor in self.inputs), self.changed_N[index]


def _cut(windows: Encoded) -> tuple[Encoded, Encoded]:
    checked = max(1, round(CHECKED * len(windows)))
    return windows.take(slice(0, -checked)), windows.take(slice(-checked, None))


class Tasks(nn.Module):
    """A detector and the heads of two tasks; calling it gives the losses of a batch."""

    def __init__(self, detector: SequenceDetector) -> None:
        super().__init__()
        self.detector, self.numbers = detector, len(detector.inputs.x)
        self.rows = [rows for _, rows in detector.inputs.codes]
        outputs = 2 * self.numbers + sum(self.rows)
        self.forecast, self.restore = (
            nn.Sequential(nn.Linear(detector.width, detector.width), nn.GELU(), nn.Linear(detector.width, outputs))
            for _ in range(2)
        )

    def forward(
        self, inputs: tuple[Tensor, ...], changed_B: Tensor, hidden_BLX: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of forecasting, restoring, telling apart. inputs: of the detector. changed_B: 1 where the event is
        an exchanged one. hidden_BLX: bool, X = F + K fields; True is hidden, from the first two tasks."""
        x_BLF, codes_BLK, mask_BL = inputs[:3]
        forecast, restored = self._events(x_BLF, codes_BLK, mask_BL, hidden_BLX)
        logit_B = self.detector(*inputs)
        return forecast, restored, functional.binary_cross_entropy_with_logits(logit_B, changed_B)

    def _events(self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor, hidden_BLX: Tensor) -> tuple[Tensor, Tensor]:
        detector, numbers = self.detector, self.numbers
        hidden_BLX = hidden_BLX & mask_BL.unsqueeze(2)
        with torch.no_grad():
            target_BLF = detector.embed_events(x_BLF, codes_BLK)[..., :numbers]
        event_BLD = detector.embed_events(x_BLF, codes_BLK.masked_fill(hidden_BLX[..., numbers:], 0))
        shown_BLF = event_BLD[..., :numbers].masked_fill(hidden_BLX[..., :numbers], 0.0)
        event_BLD = torch.cat([shown_BLF, event_BLD[..., numbers:]], dim=2).masked_fill(~mask_BL.unsqueeze(2), 0.0)
        state_BLH = detector.trunk.states(event_BLD, mask_BL)
        before_BL = mask_BL[:, :-1]
        out_NO, next_NX = self.forecast(state_BLH[:, :-1][before_BL]), hidden_BLX[:, 1:][before_BL]
        forecast = self._loss(
            out_NO, target_BLF[:, 1:][before_BL], codes_BLK[:, 1:][before_BL], torch.ones_like(next_NX)
        )
        restored = self._loss(
            self.restore(state_BLH[mask_BL]), target_BLF[mask_BL], codes_BLK[mask_BL], hidden_BLX[mask_BL]
        )
        return forecast, restored

    def _loss(self, out_NO: Tensor, target_NF: Tensor, codes_NK: Tensor, counts_NX: Tensor) -> Tensor:
        """Mean negative log likelihood of the fields that count, in nats a field."""
        middle_NF, spread_NF, *logits = torch.split(out_NO, [self.numbers, self.numbers, *self.rows], dim=1)
        spread_NF = spread_NF.clamp(*LOG_SPREAD)
        losses = [spread_NF + (target_NF - middle_NF).abs() * torch.exp(-spread_NF)]
        for k, logit_NR in enumerate(logits):
            losses.append(functional.cross_entropy(logit_NR, codes_NK[:, k].long(), reduction="none").unsqueeze(1))
        loss_NX = torch.cat(losses, dim=1)
        return (loss_NX * counts_NX).sum() / counts_NX.sum().clamp(min=1)


def _windows(
    history: Source, end_ms: int, recipe: PretrainRecipe, report: Callable[[int, int], None]
) -> tuple[Encoded, Encoded]:
    """A seeded share of the windows, and about as many of exchanged events, both in the order of the clock."""
    unlabelled = history.events_alone().known_by(end_ms)
    share = min(1.0, recipe.max_windows / max(unlabelled.count_events(), 1))
    random = np.random.default_rng(recipe.seed)
    real, changed = [], []
    for chunk in chunks(unlabelled, report=report):
        windows = windows_of_exchanged(chunk, share, random)
        if windows is not None:
            changed.append(windows)
        step = chunk.store.step(chunk.batch, chunk.clock_M)
        real.append(step.encoded.take(sampled(chunk.batch.id_hash_M, share, recipe.seed)[step.applied_A]))
    counts = [sum(map(len, parts)) for parts in (real, changed)]
    if min(counts) < MIN_WINDOWS:
        raise TrainingError(
            f"{counts[0]} windows before {to_iso(end_ms)}, {counts[1]} of exchanged events: expected at least "
            f"{MIN_WINDOWS} of each, of several entities"
        )
    return Encoded.concatenate(real), Encoded.concatenate(changed)


def _train(
    detector: SequenceDetector,
    windows: _Windows,
    checked: _Windows,
    recipe: PretrainRecipe,
    report: Callable[[int, str], None],
) -> dict[str, list[float]]:
    """In place; the losses of every epoch, on the windows and on those that are only checked."""
    model = Tasks(detector)
    # What no task reaches has no gradient, and is left as it is.
    loop = Loop(
        model, [(list(model.parameters()), recipe.learning_rate)], items=len(windows.changed_N), batch=recipe.batch,
        epochs=recipe.epochs, weight_decay=recipe.weight_decay, average=recipe.average, seed=recipe.seed,
        threads=recipe.threads,
    )  # fmt: skip

    def loss_of(index: Tensor, generator: Generator) -> Tensor:
        inputs, changed_B = windows.take(index)
        losses = model(inputs, changed_B, _hidden(model, inputs[2], recipe.hide, generator))
        return cast(Tensor, sum(losses))

    found: dict[str, list[float]] = {"loss": [], **{f"{task}_loss": [] for task in TASKS}}
    for epoch in range(1, recipe.epochs + 1):
        found["loss"].append(loop.run_epoch(loss_of))
        losses = _check(loop.average.model, checked, recipe)
        for task, loss in losses.items():
            found[f"{task}_loss"].append(loss)
        shown = ", ".join(f"{task} {loss:.4f}" for task, loss in losses.items())
        report(epoch, f"loss {found['loss'][-1]:.4f}, of what is not trained on {shown} nats")
    detector.load_state_dict(loop.average.model.detector.state_dict())
    detector.eval()
    return found


@torch.no_grad()
def _check(model: Tasks, checked: _Windows, recipe: PretrainRecipe) -> dict[str, float]:
    """Losses on these windows, with the same fields hidden every time."""
    generator, count = Generator().manual_seed(recipe.seed), len(checked.changed_N)
    total = np.zeros(len(TASKS))
    for index in torch.split(torch.arange(count), recipe.batch):
        inputs, changed_B = checked.take(index)
        losses = model(inputs, changed_B, _hidden(model, inputs[2], recipe.hide, generator))
        total += np.array([float(loss) for loss in losses]) * len(index)
    return dict(zip(TASKS, (total / count).tolist(), strict=True))


def _hidden(model: Tasks, mask_BL: Tensor, share: float, generator: Generator) -> Tensor:
    return torch.rand((*mask_BL.shape, model.numbers + len(model.rows)), generator=generator) < share
