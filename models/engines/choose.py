"""Which engine runs a bundle: the fastest on this machine of those that are right.

Every engine that the setting allows is built, run on the golden case, tried on whether company changes a bit, and
timed at a small and at a large batch. The rule:

- least time at the large batch decides: it is what a busy worker is made of;
- an engine whose small batch takes longer than SMALL_LIMIT_S is taken only if all others do, too: it would stand
  between an event and its answer when little is going on;
- a later one in the order of AUTOMATIC must take less than MARGIN of the earlier one's time, so that chance does not
  give two workers, or one before and after a restart, engines that differ in the last bits.

`auto` measures float32 only; reduced precision changes scores and is for those who ask. It leaves torch for the case
that nothing else can run the bundle: importing it alone costs a worker seconds and most of its memory.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from models.bundle import Bundle, Golden
from models.engines.base import TOLERANCE, Engine, scores_of
from models.engines.blocks import probe_windows
from models.errors import BundleError
from models.features.encoded import Encoded
from models.pipeline.spec import SURPRISE
from models.weights import Scaling

__all__ = ["LARGE", "SMALL", "Choice", "EngineName", "Measured", "check_golden", "choose", "fastest", "measure"]

EngineName = Literal["auto", "native", "native-int16", "torch", "onnxruntime", "openvino", "openvino-bf16"]

SMALL, LARGE = 8, 512  # windows of full length
SMALL_LIMIT_S = 0.003
MARGIN = 0.85
ROUNDS = 5  # of which the quickest counts: what else the machine does only ever adds
PROBE_LENGTHS, PROBE_EACH = 8, 12  # windows of the company check: several blocks, some not full


@dataclass(frozen=True, slots=True)
class _Kind:
    """An engine as it is known before anything of it is imported."""

    module: str
    function: str
    extra: str | None  # of the distribution, which installs what it imports; None for its own dependencies
    needs_onnx: bool = False
    architectures: tuple[str, ...] | None = None  # None for all


KINDS = {
    "native": _Kind("native_engine", "build", None, architectures=("gru", SURPRISE)),
    "native-int16": _Kind("native_engine", "build_int16", None, architectures=("gru",)),
    "onnxruntime": _Kind("onnx_engine", "build", "onnx", needs_onnx=True),
    "openvino": _Kind("openvino_engine", "build", "openvino", needs_onnx=True),
    "openvino-bf16": _Kind("openvino_engine", "build_bf16", "openvino", needs_onnx=True),
    "torch": _Kind("torch_engine", "build", "torch"),
}
AUTOMATIC = ("native", "onnxruntime", "openvino")
LAST_RESORT = ("torch",)


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine's row of the table. Times in seconds an event; None for one that was left out, which says why.

    golden: the largest difference of a golden score.
    """

    engine: str
    small_s: float | None = None
    large_s: float | None = None
    golden: float | None = None
    left_out: str | None = None

    def described(self) -> str:
        """For a log line."""
        if self.small_s is None or self.large_s is None:
            return f"left out: {self.left_out}"
        small, large = (f"{seconds * 1e6:.1f} µs" for seconds in (self.small_s, self.large_s))
        return f"{small} an event in a batch of {SMALL}, {large} in {LARGE}, golden {self.golden:.1e}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine to use, and all that were looked at."""

    engine: Engine
    table: tuple[Measured, ...]


class _UnusableError(Exception):
    """This bundle or this installation cannot use an engine."""


def choose(bundle: Bundle, engine: EngineName = "auto", threads: int = 1) -> Choice:
    """The fastest engine that is right, or the named one if it is.

    threads: of the engine. Raises BundleError with reason `golden` when engines ran but none was right, `engine`
    when none could run, and ValueError for a name that is none of EngineName.
    """
    if engine not in get_args(EngineName):
        raise ValueError(f"engine = {engine!r}: expected one of {', '.join(get_args(EngineName))}")
    rounds: list[tuple[str, ...]] = [AUTOMATIC, LAST_RESORT] if engine == "auto" else [(engine,)]
    table: list[Measured] = []
    for names in rounds:
        found = {name: _try(bundle, name, threads) for name in names}
        table += [measured for _, measured in found.values()]
        usable = {name: built for name, (built, _) in found.items() if built is not None}
        if usable:
            return Choice(usable[fastest([found[name][1] for name in usable])], tuple(table))
    ran = any(row.golden is not None for row in table)
    why = "; ".join(f"{row.engine}: {row.left_out}" for row in table)
    raise BundleError("golden" if ran else "engine", f"{bundle.version} with engine = {engine!r}: {why}")


def measure(bundle: Bundle, threads: int = 1) -> tuple[Measured, ...]:
    """A row for every engine there is, those that `auto` passes over included."""
    return tuple(_try(bundle, name, threads)[1] for name in KINDS)


def fastest(rows: Sequence[Measured]) -> str:
    """The engine to take by the rule, of rows in the order of preference, all with times; at least one."""
    times = [(row.engine, SMALL * (row.small_s or 0.0), row.large_s or 0.0) for row in rows]
    quick = [row for row in times if row[1] <= SMALL_LIMIT_S] or times
    best = quick[0]
    for other in quick[1:]:
        if other[2] < MARGIN * best[2]:
            best = other
    return best[0]


def check_golden(engine: Engine, golden: Golden) -> None:
    """Raises BundleError, reason `golden`, when a golden score is off by more than the engine's tolerance."""
    _check_difference(_difference(engine, golden), engine)


def _difference(engine: Engine, golden: Golden) -> float:
    return float(np.max(np.abs(scores_of(engine.logits(golden.encoded)) - golden.score_B)))


def _check_difference(off: float, engine: Engine) -> None:
    tolerance = TOLERANCE[engine.precision]
    if not off <= tolerance:  # NaN is refused, too
        raise BundleError("golden", f"score_B is off by {off:.3g}: expected at most {tolerance:.0e}")


def _try(bundle: Bundle, name: str, threads: int) -> tuple[Engine | None, Measured]:
    """An engine that is right with its times, or None and why not."""
    off = None
    try:
        engine = _build(bundle, name, threads)
        off = _difference(engine, bundle.golden)
        _check_difference(off, engine)
        _check_company(engine, bundle)
        small_s, large_s = (_time(engine, bundle, rows, threads) for rows in (SMALL, LARGE))
    except _UnusableError as error:
        return None, Measured(name, left_out=str(error))
    except BundleError as error:
        return None, Measured(name, golden=off, left_out=str(error))
    except Exception as error:  # libraries have errors of many families, and none may take the worker down
        return None, Measured(name, left_out=f"{type(error).__name__}: {error}"[:300])
    return engine, Measured(name, small_s, large_s, off)


def _build(bundle: Bundle, name: str, threads: int) -> Engine:
    kind = KINDS[name]
    if kind.architectures is not None and bundle.info.architecture not in kind.architectures:
        raise _UnusableError(f"it cannot run {bundle.info.architecture}, only {', '.join(kind.architectures)}")
    if kind.needs_onnx and bundle.onnx is None:
        raise _UnusableError("the bundle has no model.onnx; train again")
    try:
        module = importlib.import_module(f"models.engines.{kind.module}")
    except ImportError as error:
        how = f"install lepton[{kind.extra}]" if kind.extra else "install lepton with all it depends on"
        raise _UnusableError(f"{error}; {how}") from error
    build = cast(Callable[[Bundle, int], Engine], getattr(module, kind.function))
    return build(bundle, threads)


def _check_company(engine: Engine, bundle: Bundle) -> None:
    """An engine's promise, tried on this machine: alone, in another order and in part, windows get the same bits."""
    windows = _mixed(bundle)
    together = engine.logits(windows)
    order = np.random.default_rng(0).permutation(len(windows))
    places = [order, order[:40], order[40:], *(order[i : i + 1] for i in range(8))]
    for index in places:
        if not np.array_equal(engine.logits(windows.take(index)), together[index]):
            raise BundleError("golden", "a window's logit changes with its company: expected the same bits")


def _mixed(bundle: Bundle) -> Encoded:
    """Windows of one event, of all events, and of some numbers between."""
    inputs, scaling = bundle.info.inputs, Scaling.of(bundle.weights)
    lengths = np.linspace(1, inputs.length, PROBE_LENGTHS).astype(int).tolist()
    return Encoded.concatenate([probe_windows(inputs, PROBE_EACH, length, scaling) for length in lengths])


def _time(engine: Engine, bundle: Bundle, rows: int, threads: int) -> float:
    """Seconds an event: of CPU, which a worker that scores beside this does not change; of time if threads share."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    inputs = bundle.info.inputs
    windows = probe_windows(inputs, rows, inputs.length, Scaling.of(bundle.weights))
    engine.logits(windows)
    least = float("inf")
    for _ in range(ROUNDS):
        began = clock()
        engine.logits(windows)
        least = min(least, clock() - began)
    return least / rows
