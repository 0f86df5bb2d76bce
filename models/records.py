"""One record's bytes to one object, with a reason for each that cannot be used.

What an object of the pipeline looks like is the codec's business; this is what is common to all of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from models.errors import EventError, shorten

__all__ = [
    "DECODE_ERRORS", "MAX_BYTES", "MAX_TEXT", "REASONS", "BadRecord", "Text", "Whole", "decode_each", "decode_one",
    "make_decoder", "optional", "time_type",
]  # fmt: skip

REASONS = {
    "empty": "the record has no value",
    "size": "the record is larger than MAX_BYTES",
    "encoding": "the bytes are not UTF-8",
    "json": "the text is not JSON",
    "schema": "a field is missing or of another type",
    "range": "a number is outside the field's limits",
    "time": "the event time is outside the years 1970 to 2100",
    "future": "the event time is further ahead of the broker's clock than pipeline.max_future",
    "key": "the record's key is not the event's entity",
}
MAX_BYTES = 65_536  # an event of this size is a mistake or an attack; decoding it would stall the batch
MAX_TEXT = 256  # characters of an identifier or category: each is kept in keys, states or alerts

Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that was refused: its position in the input, a key of REASONS, and the particulars."""

    index: int
    reason: str
    detail: str


def time_type(unit: str) -> Any:
    """What a time of this unit (`TimeField.unit`) is in JSON."""
    if unit == "iso8601":
        return datetime.datetime
    limit = 10**11 if unit == "s" else 10**14  # far outside 1970 to 2100, and safe to multiply
    whole = Annotated[int, Meta(ge=-limit, le=limit)]
    return Annotated[float, Meta(ge=-limit, le=limit)] if unit == "s" else whole


def optional(kind: Any, required: bool) -> Any:
    """The type of a member that may be missing or null unless it is required."""
    return kind if required else kind | None


def make_decoder(name: str, members: list[tuple[str, str, Any]]) -> msgspec.json.Decoder[Any]:
    """A decoder for objects with these members; an optional member defaults to None."""
    fields: list[Any] = []
    for attribute, _, kind in members:
        may_be_missing = type(None) in getattr(kind, "__args__", ())
        fields.append((attribute, kind, None) if may_be_missing else (attribute, kind))
    keys = {attribute: key for attribute, key, _ in members}
    struct = msgspec.defstruct(name, fields, rename=keys, kw_only=True, gc=False)
    return msgspec.json.Decoder(struct)


def decode_each(
    decoder: msgspec.json.Decoder[Any], values: Sequence[bytes | None]
) -> tuple[list[Any], NDArray[np.int64], list[BadRecord]]:
    """The objects of M record values, the position of each in the input: int64 (M,), and what was refused.

    All at once while nothing is wrong; one by one, to find what is, when something is.
    """
    decode = decoder.decode
    try:
        _check_bytes(values)
        return list(map(decode, values)), np.arange(len(values)), []  # type: ignore[arg-type]
    except DECODE_ERRORS:
        pass
    structs, good, bad = [], [], []
    for i, value in enumerate(values):
        try:
            structs.append(decode_one(decode, value))
            good.append(i)
        except EventError as error:
            bad.append(BadRecord(i, error.reason, error.detail))
    return structs, np.array(good, dtype=np.int64), bad


def _check_bytes(values: Sequence[bytes | None]) -> None:
    """Raises one of DECODE_ERRORS when a value is missing, too large or not UTF-8, which the decoder would not notice
    where no field is read. Of one that the decoder takes, the last byte is ASCII: none can mend its neighbour."""
    if None in values:
        raise ValueError
    joined = b"".join(values)  # type: ignore[arg-type]
    if len(joined) > MAX_BYTES and max(map(len, values)) > MAX_BYTES:  # type: ignore[arg-type]
        raise ValueError
    if not joined.isascii():
        joined.decode()


def decode_one(decode: Any, value: bytes | None) -> Any:
    """What `decode` makes of one record's value. Raises EventError."""
    if not value:
        raise EventError("empty", "value = nothing: expected a JSON object")
    if len(value) > MAX_BYTES:
        raise EventError("size", f"value has {len(value)} bytes: expected at most {MAX_BYTES}")
    try:
        value.decode()
        return decode(value)
    except DECODE_ERRORS as error:
        raise EventError(*_reason(error, value)) from error


def _reason(error: Exception, value: bytes) -> tuple[str, str]:
    """Which of REASONS a decoding failure is. msgspec names the field; it never quotes the payload."""
    if isinstance(error, msgspec.ValidationError | RecursionError | OverflowError):
        return "schema", str(error)
    try:
        value.decode()
    except UnicodeDecodeError as wrong:
        return "encoding", f"byte {wrong.start} = {shorten(value[wrong.start : wrong.start + 1])}: expected UTF-8"
    return "json", str(error)
