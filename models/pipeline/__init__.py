"""The pipeline file: what a user writes instead of Python. Everything else is derived from it."""

from models.pipeline.load import digest, load_pipeline, parse_pipeline, shipped_pipelines
from models.pipeline.spec import Pipeline

__all__ = ["Pipeline", "digest", "load_pipeline", "parse_pipeline", "shipped_pipelines"]
