"""A pre-trained trunk as a folder that is checked before it is used: weights and scaling of what reads the events.

    trunk.json            for which pipeline and detector, and how it was made
    weights.safetensors   the trunk, the table of the codes, mean and standard deviation of the events' numbers
    MANIFEST.json         SHA-256 of both; written last

It is no bundle: it judges nothing, and knows nothing of verdicts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

from models.detectors import Detector
from models.pipeline.load import digest
from models.pipeline.spec import Pipeline
from training.errors import PretrainedError

__all__ = ["in_trunk", "is_free", "load_trunk", "write_trunk"]

FORMAT = 1
INFO, WEIGHTS, MANIFEST = "trunk.json", "weights.safetensors", "MANIFEST.json"
SCALER = ("x_mean_F", "x_std_F")


class _Info(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    pipeline: str
    digest: str
    architecture: str
    hidden: int
    embedding: int
    training: dict[str, Any]


def in_trunk(name: str) -> bool:
    """Whether a detector's weight of this name belongs to what reads the events."""
    return name.startswith(("trunk.", "table."))


def is_free(folder: Path) -> bool:
    """Whether `write_trunk` would take this folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def write_trunk(folder: Path, pipeline: Pipeline, detector: Detector, training: dict[str, Any]) -> str:
    """Write the detector's trunk into a new or empty folder; its version, which is the digest of its weights.

    training: JSON values, on what and how. Raises PretrainedError, reason `exists` or `weights` (not finite).
    """
    if not is_free(folder):
        raise PretrainedError("exists", f"{folder} is not empty: expected a new or empty folder")
    arrays = {name: array for name, array in detector.weights().items() if in_trunk(name) or name in SCALER}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise PretrainedError("weights", f"{name} has a value that is not finite: expected finite float32")
    info = _Info(
        format=FORMAT, pipeline=pipeline.name, digest=digest(pipeline), architecture=detector.architecture,
        hidden=detector.hidden, embedding=detector.embedding, training=training,
    )  # fmt: skip
    files = {INFO: msgspec.json.format(msgspec.json.encode(info)), WEIGHTS: safetensors.numpy.save(arrays)}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name, data in {**files, MANIFEST: msgspec.json.format(msgspec.json.encode({"sha256": sums}))}.items():
            (scratch / name).write_bytes(data)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sums[WEIGHTS][:16]


@torch.no_grad()
def load_trunk(folder: Path, pipeline: Pipeline, detector: Detector) -> str:
    """Put the trunk into a detector, whose other weights stay; its version.

    Raises PretrainedError with reason `missing` (a file), `checksum`, `format` (unreadable, or of another version),
    `digest` (made for another pipeline or other features) or `weights` (another detector, or not finite).
    """
    files = _verified(folder)
    try:
        info = msgspec.json.decode(files[INFO], type=_Info)
        arrays = safetensors.numpy.load(files[WEIGHTS])
    except (msgspec.MsgspecError, SafetensorError) as error:
        raise PretrainedError("format", f"{folder}: {error}") from error
    if info.format != FORMAT:
        raise PretrainedError("format", f"{folder} has format {info.format}: expected {FORMAT}")
    if (info.pipeline, info.digest) != (pipeline.name, digest(pipeline)):
        raise PretrainedError(
            "digest", f"{folder} was made for pipeline {info.pipeline} with digest {info.digest}: "
            f"expected {pipeline.name} with digest {digest(pipeline)}; pre-train for this pipeline file",
        )  # fmt: skip
    found = (info.architecture, info.hidden, info.embedding)
    if found != (detector.architecture, detector.hidden, detector.embedding):
        expected = (detector.architecture, detector.hidden, detector.embedding)
        raise PretrainedError("weights", f"{folder} is of a detector {found}: expected {expected}")
    own = {name: tensor for name, tensor in detector.state_dict().items() if in_trunk(name) or name in SCALER}
    for name in sorted(own.keys() | arrays.keys()):
        shape, wanted = arrays[name].shape if name in arrays else None, own[name].shape if name in own else None
        if shape != wanted or not np.isfinite(arrays[name]).all():
            raise PretrainedError("weights", f"{name} is {shape}, or not finite: expected finite {wanted}")
        own[name].copy_(torch.from_numpy(arrays[name].copy()))
    return hashlib.sha256(files[WEIGHTS]).hexdigest()[:16]


def _verified(folder: Path) -> dict[str, bytes]:
    """The bytes that were checked are those that are used."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        files = {name: (folder / name).read_bytes() for name in (INFO, WEIGHTS)}
    except OSError as error:
        raise PretrainedError("missing", f"{error.filename}: {error.strerror}: expected a file of a trunk") from error
    try:
        sums = msgspec.json.decode(manifest, type=dict[str, dict[str, str]])["sha256"]
    except (msgspec.MsgspecError, KeyError) as error:
        raise PretrainedError("format", f"{folder / MANIFEST}: {error}: expected SHA-256 sums") from error
    for name, data in files.items():
        actual = hashlib.sha256(data).hexdigest()
        if actual != sums.get(name):
            raise PretrainedError("checksum", f"{folder / name} has SHA-256 {actual}: expected {sums.get(name)}")
    return files
