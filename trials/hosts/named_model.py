"""The sizes of a model that somebody names: an artifact's directory, or a published model by its name."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.tools.local.layouts import read_sizes
from export.synthetic.shapes import SHAPE_NAMES
from trials.bench.shape_artifact import write_shape_artifact

PUBLISHED = ("2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B")
"""The published models."""


def read_named_model(name: str, *, kv_in_fp8: bool = False) -> ModelSizes:
    """Return the sizes of an artifact, or of a shape; raises `ConfigurationError` and `ArtifactError`."""
    if Path(name).is_dir():
        return read_sizes(Path(name), kv_in_fp8=kv_in_fp8)
    if name in SHAPE_NAMES:
        return sizes_of_shape(name, kv_in_fp8=kv_in_fp8)
    raise ConfigurationError(f"{name!r} is no directory and none of {', '.join(SHAPE_NAMES)}", field="model")


@cache
def sizes_of_shape(shape: str, *, kv_in_fp8: bool = False) -> ModelSizes:
    """Return the sizes of a shape."""
    with tempfile.TemporaryDirectory() as directory:
        artifact = write_shape_artifact(Path(directory) / shape, shape)
        return read_sizes(artifact, kv_in_fp8=kv_in_fp8)
