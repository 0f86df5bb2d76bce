"""A model as a directory that can be checked before it is trusted. Nothing in it is ever unpickled.

    bundle.json           what the model is: pipeline, digest, architecture, inputs, calibration, threshold, …
    weights.safetensors   weights and scaler
    golden.safetensors    a few encoded windows, with the score and probability they had when it was written
    card.md               the same for people
    MANIFEST.json         SHA-256 of each of the files above; written last

Checksums show damage, not forgery: whoever can write the directory can write the manifest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from models.bundle_card import card
from models.calibration import Calibration
from models.clock import now_ms, to_iso
from models.detectors import Detector, build_detector
from models.detectors.run import run_blocks, scores_of
from models.errors import BundleError
from models.features.encoded import Encoded, InputSpec
from models.features.layout import Layout
from models.pipeline.load import digest
from models.pipeline.spec import Pipeline

__all__ = ["FORMAT", "Bundle", "BundleInfo", "load_bundle", "read_info", "write_bundle"]

FORMAT = 1  # of this directory; raised when an older reader could misread it
MANIFEST, INFO, WEIGHTS, GOLDEN, CARD = (
    "MANIFEST.json", "bundle.json", "weights.safetensors", "golden.safetensors", "card.md",
)  # fmt: skip
FILES = (INFO, WEIGHTS, GOLDEN, CARD)
GOLDEN_ROWS = 32
GOLDEN_TOLERANCE = 1e-5  # between machines and torch builds, matrix kernels differ by a few 1e-7


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`bundle.json`. Unknown keys are ignored, so that later versions may add some."""

    format: int
    version: str  # time of creation and content hash: unique, and sorts by age
    created_at: str  # ISO-8601
    pipeline: str
    digest: str  # of everything in the pipeline file that the inputs depend on
    architecture: str
    hidden: int
    embedding: int
    inputs: InputSpec
    calibration: Calibration
    threshold: float
    metrics: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded and verified bundle; the detector is in eval mode."""

    folder: Path
    info: BundleInfo
    detector: Detector

    @property
    def version(self) -> str:
        return self.info.version

    @property
    def threshold(self) -> float:
        return self.info.threshold

    @property
    def calibration(self) -> Calibration:
        return self.info.calibration


def write_bundle(
    folder: Path,
    pipeline: Pipeline,
    detector: Detector,
    *,
    calibration: Calibration,
    threshold: float,
    metrics: dict[str, Any],
    training: dict[str, Any],
    golden: Encoded,
    created_ms: int | None = None,
) -> Bundle:
    """Write a bundle into a folder that is new or empty, and load it back, fully verified.

    metrics and training: JSON values, shown in the card; `training` says on what (range, events, seed, …).
    golden: windows to keep as the golden case; the first GOLDEN_ROWS are taken. The detector is left in eval
    mode. Raises BundleError, reason `exists` for a folder with something in it, `weights` for weights that are
    not finite, `golden` for no golden windows, `digest` for a detector with other inputs than the pipeline's.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise BundleError("exists", f"{folder} is not empty: expected a new or empty folder")
    if len(golden) == 0:
        raise BundleError("golden", "0 golden windows: expected at least one")
    _check_inputs(detector.inputs, pipeline)
    detector.eval()
    weights = safetensors.torch.save({k: v.contiguous() for k, v in detector.state_dict().items()})
    golden_bytes = _golden(detector, calibration, golden.take(slice(0, GOLDEN_ROWS)))
    created = now_ms() if created_ms is None else created_ms
    facts: dict[str, Any] = {
        "format": FORMAT, "created_at": to_iso(created), "pipeline": pipeline.name, "digest": digest(pipeline),
        "architecture": detector.architecture, "hidden": detector.hidden, "embedding": detector.embedding,
        "inputs": detector.inputs, "calibration": calibration, "threshold": threshold,
        "metrics": metrics, "training": training,
    }  # fmt: skip
    content = hashlib.sha256(_json(facts) + weights).hexdigest()
    stamp = to_iso(created)[:19].replace("-", "").replace(":", "")
    info = BundleInfo(version=f"{stamp}-{content[:6]}", **facts)
    files = {INFO: _json(info), WEIGHTS: weights, GOLDEN: golden_bytes, CARD: card(info).encode()}
    return _write(folder, files, pipeline)


def read_info(folder: Path) -> BundleInfo:
    """`bundle.json` of a folder whose checksums all hold. Raises BundleError: missing, checksum, format."""
    return _info(_verified_files(Path(folder)))


def load_bundle(folder: Path, pipeline: Pipeline) -> Bundle:
    """The bundle, if every check holds: checksums, format, pipeline digest, finite weights, golden case.

    Raises BundleError with reason `missing` (a file), `checksum`, `format` (unreadable, or of a newer version),
    `digest` (made for another pipeline or other features), `weights` (not finite, or of another shape), `golden`
    (this machine computes other scores).
    """
    folder = Path(folder)
    files = _verified_files(folder)
    info = _info(files)
    if info.pipeline != pipeline.name or info.digest != digest(pipeline):
        raise BundleError(
            "digest",
            f"{folder} was made for pipeline {info.pipeline} with digest {info.digest}: "
            f"expected {pipeline.name} with digest {digest(pipeline)}; train a model for this pipeline file",
        )
    _check_inputs(info.inputs, pipeline)
    detector = _detector(info, files[WEIGHTS])
    _check_golden(detector, info, files[GOLDEN])
    return Bundle(folder, info, detector)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2)


def _plain(value: object) -> object:
    """Metrics are often numpy scalars."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} in a bundle: expected JSON values")


def _write(folder: Path, files: dict[str, bytes], pipeline: Pipeline) -> Bundle:
    """Written and loaded beside its place first, so that a folder of this name is never half a bundle."""
    manifest = {"format": FORMAT, "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name, data in {**files, MANIFEST: _json(manifest)}.items():
            (scratch / name).write_bytes(data)
        bundle = load_bundle(scratch, pipeline)
        os.replace(scratch, folder)  # an empty folder in its place is replaced, too
        return replace(bundle, folder=folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _verified_files(folder: Path) -> dict[str, bytes]:
    """The bytes that were checked are the bytes that are used: nothing is read twice."""
    data = {name: _read(folder / name) for name in (MANIFEST, *FILES)}
    try:
        sums = msgspec.json.decode(data.pop(MANIFEST), type=dict[str, Any])["sha256"]
        expected = {name: str(sums[name]) for name in FILES}
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        detail = f"{folder / MANIFEST}: {error}: expected the SHA-256 of {', '.join(FILES)}"
        raise BundleError("format", detail) from error
    for name in FILES:
        actual = hashlib.sha256(data[name]).hexdigest()
        if actual != expected[name]:
            raise BundleError("checksum", f"{folder / name} has SHA-256 {actual}: expected {expected[name]}")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError("missing", f"{path}: {error.strerror}: expected a file of a bundle") from error


def _info(files: dict[str, bytes]) -> BundleInfo:
    try:
        found = msgspec.json.decode(files[INFO], type=dict[str, Any]).get("format")
        if found != FORMAT:
            raise BundleError("format", f"{INFO} has format {found!r}: expected {FORMAT}")
        return msgspec.json.decode(files[INFO], type=BundleInfo)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError("format", f"{INFO}: {error}") from error


def _check_inputs(inputs: InputSpec, pipeline: Pipeline) -> None:
    expected = Layout(pipeline).inputs
    for what in ("length", "x", "codes", "context"):
        if getattr(inputs, what) != getattr(expected, what):
            raise BundleError(
                "digest",
                f"the detector's inputs.{what} = {getattr(inputs, what)!r}: "
                f"expected {getattr(expected, what)!r}, which the running features give",
            )


def _detector(info: BundleInfo, data: bytes) -> Detector:
    try:
        detector = build_detector(info.architecture, info.inputs, info.hidden, info.embedding)
    except (ValueError, RuntimeError) as error:
        raise BundleError("format", f"{INFO}: {error}") from error
    try:
        weights = safetensors.torch.load(data)
        detector.load_state_dict(weights, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError("weights", f"{WEIGHTS}: {error}") from error
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise BundleError("weights", f"{WEIGHTS}: {name} has a value that is not finite")
    return detector.eval()


def _scores(detector: Detector, calibration: Calibration, encoded: Encoded) -> dict[str, NDArray[np.float32]]:
    score_B = scores_of(run_blocks(detector, encoded))
    return {"score_B": score_B, "probability_B": calibration.apply(score_B)}


def _golden(detector: Detector, calibration: Calibration, golden: Encoded) -> bytes:
    inputs = {"x_BLF": golden.x_BLF, "codes_BLK": golden.codes_BLK, "mask_BL": golden.mask_BL,
              "context_BC": golden.context_BC}  # fmt: skip
    arrays = {k: np.ascontiguousarray(v) for k, v in (inputs | _scores(detector, calibration, golden)).items()}
    return safetensors.numpy.save(arrays)


def _check_golden(detector: Detector, info: BundleInfo, data: bytes) -> None:
    try:
        case = safetensors.numpy.load(data)
        encoded = Encoded(*(case[name] for name in ("x_BLF", "codes_BLK", "mask_BL", "context_BC")))
        now = _scores(detector, info.calibration, encoded)
        off = {name: float(np.max(np.abs(now[name] - case[name]))) for name in now}
    except (SafetensorError, KeyError, ValueError, RuntimeError, IndexError) as error:
        raise BundleError("golden", f"{GOLDEN}: {error}") from error
    for name, difference in off.items():
        if not difference <= GOLDEN_TOLERANCE:  # NaN is refused, too
            raise BundleError("golden", f"{name} is off by {difference:.3g}: expected at most {GOLDEN_TOLERANCE:.0e}")
