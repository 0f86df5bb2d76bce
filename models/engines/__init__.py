"""Inference engines: ways to run one detector. `base` has the interface, `choose` takes the fastest that is right."""

from models.engines.base import Engine, scores_of
from models.engines.choose import LARGE, SMALL, Choice, EngineName, Measured, choose, measure

__all__ = ["LARGE", "SMALL", "Choice", "Engine", "EngineName", "Measured", "choose", "measure", "scores_of"]
