"""A pre-trained detector as a folder that is checked before it is used: all its weights but those that read verdicts.

    pretrained.json       for which pipeline and detector, and how it was made
    weights.safetensors   trunk, table of the codes, head, scaling of numbers and context
    MANIFEST.json         SHA-256 of both; written last

It is no bundle: it has judged exchanged events, not frauds, and knows nothing of verdicts.
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

from models.clock import from_iso
from models.detectors import SequenceDetector
from models.pipeline.load import digest
from models.pipeline.spec import Pipeline
from training.errors import PretrainedError

__all__ = ["in_trunk", "is_free", "is_pretrained", "load_pretrained", "pretrained_end", "write_pretrained"]

FORMAT = 2
INFO, WEIGHTS, MANIFEST = "pretrained.json", "weights.safetensors", "MANIFEST.json"
SCALERS = {"x_std_F": "x_mean_F", "context_std_C": "context_mean_C"}
OWN = ("verdict_trunks.", "verdict_mean_JG", "verdict_std_JG")  # of what is not pre-trained
LAST_BIAS = "head.5.bias"
UNSCALED = 1.0  # the standard deviation of a column that did not vary, as `SequenceDetector.fit_scaler` sets it


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


def is_pretrained(name: str) -> bool:
    """Whether a weight of this name comes from pre-training."""
    return not name.startswith(OWN)


def is_free(folder: Path) -> bool:
    """Whether `write_pretrained` would take this folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def write_pretrained(folder: Path, pipeline: Pipeline, detector: SequenceDetector, training: dict[str, Any]) -> str:
    """Write a detector without what reads verdicts into a new or empty folder; its version, a digest of the weights.

    training: JSON values, on what and how. Raises PretrainedError, reason `exists` or `weights` (not finite).
    """
    if not is_free(folder):
        raise PretrainedError("exists", f"{folder} is not empty: expected a new or empty folder")
    arrays = {name: array for name, array in detector.weights().items() if is_pretrained(name)}
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


def pretrained_end(folder: Path) -> int:
    """Up to when a folder has learnt from events, epoch ms. Raises as `load_pretrained`."""
    return from_iso(_info(folder, _verified(folder)).training["end"])


@torch.no_grad()
def load_pretrained(folder: Path, pipeline: Pipeline, detector: SequenceDetector) -> str:
    """Put the pre-trained weights into a detector that is scaled; its version.

    The detector keeps what reads verdicts, its last bias (the prior of fraud), and the scaling of columns that did not
    vary in pre-training, such as counts of labels.

    Raises PretrainedError with reason `missing` (a file), `checksum`, `format` (unreadable, or of another version),
    `digest` (made for another pipeline or other features) or `weights` (another detector, or not finite).
    """
    files = _verified(folder)
    info = _info(folder, files)
    try:
        arrays = safetensors.numpy.load(files[WEIGHTS])
    except SafetensorError as error:
        raise PretrainedError("format", f"{folder}: {error}") from error
    if (info.pipeline, info.digest) != (pipeline.name, digest(pipeline)):
        raise PretrainedError(
            "digest", f"{folder} was made for pipeline {info.pipeline} with digest {info.digest}: "
            f"expected {pipeline.name} with digest {digest(pipeline)}; pre-train for this pipeline file",
        )  # fmt: skip
    found = (info.architecture, info.hidden, info.embedding)
    if found != (detector.architecture, detector.hidden, detector.embedding):
        expected = (detector.architecture, detector.hidden, detector.embedding)
        raise PretrainedError("weights", f"{folder} is of a detector {found}: expected {expected}")
    own = {name: tensor for name, tensor in detector.state_dict().items() if is_pretrained(name)}
    for name in sorted(own.keys() | arrays.keys()):
        shape, wanted = arrays[name].shape if name in arrays else None, own[name].shape if name in own else None
        if shape != wanted or not np.isfinite(arrays[name]).all():
            raise PretrainedError("weights", f"{name} is {shape}, or not finite: expected finite {wanted}")
    for std, mean in SCALERS.items():
        constant = arrays[std] == UNSCALED
        for name in (std, mean):
            arrays[name] = np.where(constant, own[name].numpy(), arrays[name])
    arrays[LAST_BIAS] = own[LAST_BIAS].numpy()
    for name, tensor in own.items():
        tensor.copy_(torch.from_numpy(arrays[name].copy()))
    return hashlib.sha256(files[WEIGHTS]).hexdigest()[:16]


def _info(folder: Path, files: dict[str, bytes]) -> _Info:
    try:
        info = msgspec.json.decode(files[INFO], type=_Info)
    except msgspec.MsgspecError as error:
        raise PretrainedError("format", f"{folder}: {error}") from error
    if info.format != FORMAT:
        raise PretrainedError("format", f"{folder} has format {info.format}: expected {FORMAT}")
    return info


def _verified(folder: Path) -> dict[str, bytes]:
    """The bytes that were checked are those that are used."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        files = {name: (folder / name).read_bytes() for name in (INFO, WEIGHTS)}
    except OSError as error:
        raise PretrainedError(
            "missing", f"{error.filename}: {error.strerror}: expected a file of a pre-trained detector"
        ) from error
    try:
        sums = msgspec.json.decode(manifest, type=dict[str, dict[str, str]])["sha256"]
    except (msgspec.MsgspecError, KeyError) as error:
        raise PretrainedError("format", f"{folder / MANIFEST}: {error}: expected SHA-256 sums") from error
    for name, data in files.items():
        actual = hashlib.sha256(data).hexdigest()
        if actual != sums.get(name):
            raise PretrainedError("checksum", f"{folder / name} has SHA-256 {actual}: expected {sums.get(name)}")
    return files
