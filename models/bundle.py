"""A model as a directory that can be checked before it is trusted. Nothing in it is ever unpickled.

    bundle.json           what the model is: pipeline, digest, architecture, inputs, calibration, threshold, …
    weights.safetensors   weights and scaler
    model.onnx            the same network for onnxruntime and OpenVINO; absent from bundles of early versions
    golden.safetensors    a few encoded windows, with the score and probability they had when it was written
    card.md               the same as bundle.json for people
    MANIFEST.json         SHA-256 of each of the files above; written last

Checksums show damage, not forgery: whoever can write the directory can write the manifest; `models.signing` is against
that. Reading needs no torch;
`bundle_write` writes, and `models.engines` runs the golden case.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from models.calibration import Calibration
from models.errors import BundleError
from models.features.encoded import Encoded, InputSpec
from models.features.layout import Layout
from models.pipeline.load import digest
from models.pipeline.spec import Pipeline, without_labels
from models.signing import Keys, check_signature
from models.weights import read_weights, weight_shapes

__all__ = ["FORMAT", "Bundle", "BundleInfo", "Golden", "check_inputs", "load_bundle", "read_info"]

FORMAT = 1  # of this directory; raised when an older reader could misread it
MANIFEST, INFO, WEIGHTS, ONNX, GOLDEN, CARD = (
    "MANIFEST.json", "bundle.json", "weights.safetensors", "model.onnx", "golden.safetensors", "card.md",
)  # fmt: skip
FILES = (INFO, WEIGHTS, GOLDEN, CARD)  # those that no bundle lacks
CURVE_TOLERANCE = 1e-6  # of golden probabilities: the same curve at the same scores


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

    def probabilities(self, score_B: NDArray[np.float32], encoded: Encoded) -> NDArray[np.float32]:
        """probability_B of the windows' scores: by the curve, or, without labels to fit one on, the score's rank among
        the entity's own."""
        if without_labels(self.architecture):
            return encoded.context_BC[:, self.inputs.context.index("surprise.rank")].copy()
        return self.calibration.apply(score_B)


@dataclass(frozen=True, slots=True)
class Golden:
    """Windows, and score_B, float32, which the trained detector gave them where it was trained."""

    encoded: Encoded
    score_B: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are whole and fit the pipeline. `models.scorer` runs it, golden case first.

    onnx: the bytes of model.onnx, None for a bundle without one.
    """

    folder: Path
    info: BundleInfo
    weights: dict[str, NDArray[np.float32]]
    onnx: bytes | None
    golden: Golden

    @property
    def version(self) -> str:
        return self.info.version

    @property
    def threshold(self) -> float:
        return self.info.threshold


def read_info(folder: Path, trusted: Keys = ()) -> BundleInfo:
    """`bundle.json` of a folder whose checksums all hold. Raises BundleError: missing, checksum, format; where keys are
    trusted, also unsigned and signature."""
    return _info(_verified_files(Path(folder), trusted))


def load_bundle(folder: Path, pipeline: Pipeline, trusted: Keys = ()) -> Bundle:
    """The bundle, if every check holds that needs no engine: checksums, format, pipeline digest, weights.

    trusted: when given, one of these keys must have signed it. Raises BundleError with reason `unsigned`, `signature`,
    `missing` (a file), `checksum`, `format` (unreadable, or of a newer version),
    `digest` (made for another pipeline or other features), `weights` (not finite, or of another shape), `golden`
    (a golden case that cannot be read, or whose probabilities are not those of the curve).
    """
    folder = Path(folder)
    files = _verified_files(folder, trusted)
    info = _info(files)
    if info.pipeline != pipeline.name or info.digest != digest(pipeline):
        raise BundleError(
            "digest",
            f"{folder} was made for pipeline {info.pipeline} with digest {info.digest}: "
            f"expected {pipeline.name} with digest {digest(pipeline)}; train a model for this pipeline file",
        )
    check_inputs(info.inputs, pipeline)
    try:
        shapes = weight_shapes(info.architecture, info.inputs, info.hidden, info.embedding)
    except ValueError as error:
        raise BundleError("format", f"{INFO}: {error}") from error
    try:
        weights = read_weights(files[WEIGHTS], shapes)
    except ValueError as error:
        raise BundleError("weights", f"{WEIGHTS}: {error}") from error
    return Bundle(folder, info, weights, files.get(ONNX), _golden(info, files[GOLDEN]))


def check_inputs(inputs: InputSpec, pipeline: Pipeline) -> None:
    """Raises BundleError, reason `digest`, for a detector with other inputs than the pipeline's."""
    expected = Layout(pipeline).inputs
    for what in ("length", "x", "codes", "context", "verdicts", "verdict_length"):
        if getattr(inputs, what) != getattr(expected, what):
            raise BundleError(
                "digest",
                f"the detector's inputs.{what} = {getattr(inputs, what)!r}: "
                f"expected {getattr(expected, what)!r}, which the running features give",
            )


def _verified_files(folder: Path, trusted: Keys) -> dict[str, bytes]:
    """The bytes that were checked are the bytes that are used: nothing is read twice."""
    manifest = _read(folder / MANIFEST)
    check_signature(folder, manifest, trusted)
    try:
        sums = msgspec.json.decode(manifest, type=dict[str, Any])["sha256"]
        names = [*FILES, ONNX] if ONNX in sums else list(FILES)  # one the manifest does not name is not used
        expected = {name: str(sums[name]) for name in names}
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        detail = f"{folder / MANIFEST}: {error}: expected the SHA-256 of {', '.join(FILES)}"
        raise BundleError("format", detail) from error
    data = {name: _read(folder / name) for name in names}
    for name in names:
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


def _golden(info: BundleInfo, data: bytes) -> Golden:
    inputs = info.inputs
    try:
        case = safetensors.numpy.load(data)
        rows = len(case["score_B"])
        expected = {
            "x_BLF": ("float32", (rows, inputs.length, len(inputs.x))),
            "codes_BLK": ("int32", (rows, inputs.length, len(inputs.codes))),
            "mask_BL": ("bool", (rows, inputs.length)), "context_BC": ("float32", (rows, len(inputs.context))),
            "verdicts_BJSG": ("float32", (rows, *inputs.verdict_shape)),
            "score_B": ("float32", (rows,)), "probability_B": ("float32", (rows,)),
        }  # fmt: skip
        for name, wanted in expected.items():
            if (found := (case[name].dtype.name, case[name].shape)) != wanted:
                raise BundleError("golden", f"{GOLDEN}: {name} is {found}: expected {wanted}")
    except (SafetensorError, KeyError) as error:
        raise BundleError("golden", f"{GOLDEN}: {error}") from error
    encoded = Encoded(*(case[name] for name in ("x_BLF", "codes_BLK", "mask_BL", "context_BC", "verdicts_BJSG")))
    sizes = np.array([size for _, size in inputs.codes], np.int32)
    known = ((encoded.codes_BLK >= 0) & (encoded.codes_BLK < sizes)).all()
    if rows == 0 or not encoded.mask_BL[:, -1].all() or not known:
        raise BundleError("golden", f"{GOLDEN}: expected windows that end with an event, and codes below {sizes}")
    off = float(np.max(np.abs(info.probabilities(case["score_B"], encoded) - case["probability_B"])))
    if not off <= CURVE_TOLERANCE:  # NaN is refused, too
        raise BundleError("golden", f"probability_B is off by {off:.3g}: expected at most {CURVE_TOLERANCE:.0e}")
    return Golden(encoded, case["score_B"])
