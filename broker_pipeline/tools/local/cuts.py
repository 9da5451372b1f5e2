"""Where the layers of a model are cut: as a person writes it, or so that the largest stage is as small as can be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.model_facts import read_model_facts
from broker_pipeline.planning.cut import StageLoad, cut_layers
from broker_pipeline.planning.layout import chain_of
from broker_pipeline.planning.model_sizes import ModelSizes


def parse_cut(text: str, num_layers: int) -> tuple[BlockRange, ...]:
    """Return the stages of a cut written as the first layers of all stages but the first: `2,10`.

    An empty text is one stage. Raises `ConfigurationError`.
    """
    try:
        starts = [int(word) for word in text.split(",")] if text.strip() else []
    except ValueError:
        raise ConfigurationError(
            f"--cut {text!r} is not a list of layer numbers; write the first layer of every stage but the first, "
            "separated by commas, such as 2,10",
            field="cut",
        ) from None
    bounds = [0, *starts, num_layers]
    if any(start >= stop for start, stop in pairwise(bounds)):
        raise ConfigurationError(
            f"--cut {text} must rise, from 1 to {num_layers - 1}: the model has layers 0 to {num_layers - 1}",
            field="cut",
        )
    return chain_of([stop - start for start, stop in pairwise(bounds)])


def balanced_cut(artifact: Path, num_stages: int) -> tuple[BlockRange, ...]:
    """Cut an artifact into stages of about equal bytes, embedding and head included.

    Raises `ConfigurationError` when there are fewer layers than stages, `ArtifactError` when there is no artifact.
    """
    model = ModelSizes.of(read_manifest(artifact), read_model_facts(artifact))
    ends = [0] * num_stages
    ends[0] = ends[-1] = model.embed_weights * model.dtype_bytes
    counts = cut_layers(model.num_layers, [StageLoad(end, model.layer_bytes, model.num_layers) for end in ends])
    if counts is None:
        raise ConfigurationError(
            f"{artifact} has {model.num_layers} layers and cannot be cut into {num_stages} stages", field="stages"
        )
    return chain_of(counts)
