"""The one feature path: (state, event) → (detector input, next state), over a batch of many entities."""

from models.features.encoded import Encoded, InputSpec
from models.features.layout import Layout

__all__ = ["Encoded", "InputSpec", "Layout"]
