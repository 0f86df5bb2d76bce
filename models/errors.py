"""Every error the project raises on purpose, in one family.

    LeptonError
    ├── PipelineError      a pipeline file cannot be used
    ├── SettingsError      a setting from the environment or a file cannot be used
    ├── EventError         one event cannot be used; `reason` is a stable code for metrics
    ├── StateError         a stored value cannot be read with this pipeline
    ├── BundleError        a model bundle is refused
    └── RegistryError      the model registry cannot do what was asked

A message names the thing, the value and what was expected. Dependencies' own exceptions are turned
into these at one border each; nothing above that border catches a library's exception.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "EventError",
    "LeptonError",
    "PipelineError",
    "RegistryError",
    "SettingsError",
    "StateError",
    "shorten",
]

VALUE_CHARS = 120  # a value in a message is for recognition; whole payloads may hold card numbers


def shorten(value: object) -> str:
    """The repr of a value, cut so that a message stays readable.

    >>> shorten("abc")
    "'abc'"
    """
    text = repr(value)
    return text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 1] + "…"


class LeptonError(Exception):
    """Root of the family."""


class PipelineError(LeptonError):
    """A pipeline file is wrong.

    `source` is the file, `key` the path of the key in it (`fields.amount.min`).
    """

    def __init__(self, source: str, key: str, value: object, expected: str) -> None:
        self.source, self.key, self.value, self.expected = source, key, value, expected
        super().__init__(f"{source}: {key} = {shorten(value)}: expected {expected}")


class SettingsError(LeptonError):
    """A setting is wrong."""


class EventError(LeptonError):
    """One event cannot be used.

    `reason` is one of `models.records.REASONS`; `detail` says which field, value and expectation.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class StateError(LeptonError):
    """A stored value does not fit the running pipeline."""


class BundleError(LeptonError):
    """A model bundle is refused; `reason` is a stable code (`checksum`, `digest`, `golden`, …)."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class RegistryError(LeptonError):
    """The registry cannot do what was asked."""
