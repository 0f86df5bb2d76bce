"""Writing a bundle: what training made becomes a directory, which is read back and run before it is in its place."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy

from models.bundle import (
    CARD,
    FORMAT,
    GOLDEN,
    INFO,
    MANIFEST,
    ONNX,
    WEIGHTS,
    Bundle,
    BundleInfo,
    check_inputs,
    load_bundle,
)  # fmt: skip
from models.bundle_card import card
from models.calibration import Calibration
from models.clock import now_ms, to_iso
from models.detectors import Detector
from models.detectors.export import to_onnx
from models.engines.base import scores_of
from models.engines.choose import check_golden
from models.engines.torch_engine import TorchEngine, detector_of
from models.errors import BundleError
from models.features.encoded import Encoded
from models.pipeline.load import digest
from models.pipeline.spec import Pipeline

__all__ = ["write_bundle"]

GOLDEN_ROWS = 32


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
    """Write a bundle into a folder that is new or empty, load it back and run its golden case.

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
    check_inputs(detector.inputs, pipeline)
    detector.eval()
    weights = safetensors.numpy.save(detector.weights())
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
    files = {
        INFO: _json(info), WEIGHTS: weights, ONNX: to_onnx(detector),
        GOLDEN: _golden(detector, info, golden.take(slice(0, GOLDEN_ROWS))), CARD: card(info).encode(),
    }  # fmt: skip
    return _write(folder, files, pipeline)


def _golden(detector: Detector, info: BundleInfo, golden: Encoded) -> bytes:
    score_B = scores_of(TorchEngine(detector).logits(golden))
    arrays = {
        "x_BLF": golden.x_BLF, "codes_BLK": golden.codes_BLK, "mask_BL": golden.mask_BL,
        "context_BC": golden.context_BC, "verdicts_BJSG": golden.verdicts_BJSG,
        "score_B": score_B, "probability_B": info.probabilities(score_B, golden),
    }  # fmt: skip
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


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
        check_golden(TorchEngine(detector_of(bundle)), bundle.golden)
        os.replace(scratch, folder)  # an empty folder in its place is replaced, too
        return replace(bundle, folder=folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
