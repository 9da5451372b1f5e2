"""Sizes of the published models as the planner sees them, from artifacts of random weights."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.model_facts import read_model_facts
from broker_pipeline.planning.model_sizes import ModelSizes
from trials.bench.shape_artifact import write_shape_artifact


@cache
def sizes_of(shape: str) -> ModelSizes:
    """Return the sizes of a shape."""
    with tempfile.TemporaryDirectory() as directory:
        artifact = write_shape_artifact(Path(directory) / shape, shape)
        return ModelSizes.of(read_manifest(artifact), read_model_facts(artifact))
