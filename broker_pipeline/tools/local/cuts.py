"""Where the layers of a model are cut: as a person writes it, or so that the largest stage is as small as can be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from broker_pipeline.artifact_manifest import EMBED_FILE, HEAD_FILE, WeightsManifest, block_file, read_manifest
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import BlockRange


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
    return _ranges(bounds)


def balanced_cut(artifact: Path, num_stages: int) -> tuple[BlockRange, ...]:
    """Cut an artifact into stages of about equal bytes, embedding and head included.

    Raises `ConfigurationError` when there are fewer layers than stages, `ArtifactError` when there is no artifact.
    """
    manifest = read_manifest(artifact)
    num_layers = manifest.num_blocks
    if not 1 <= num_stages <= num_layers:
        raise ConfigurationError(
            f"{artifact} has {num_layers} layers and cannot be cut into {num_stages} stages", field="stages"
        )
    return _ranges(balanced_bounds(layer_costs(manifest, num_stages), num_stages))


def layer_costs(manifest: WeightsManifest, num_stages: int) -> list[int]:
    """Return the bytes that a stage holds for each layer; embedding and head count with the first and the last.

    A tied head costs the last of several stages a copy of the embedding.
    """
    sizes = {file.name: file.size_bytes for file in manifest.weight_files}
    is_tied = any(record.tied_to is not None for record in manifest.tensors)
    costs = [sizes.get(block_file(block), 0) for block in range(manifest.num_blocks)]
    costs[0] += sizes.get(EMBED_FILE, 0)
    costs[-1] += sizes.get(HEAD_FILE, 0) + (sizes.get(EMBED_FILE, 0) if is_tied and num_stages > 1 else 0)
    return costs


def balanced_bounds(costs: Sequence[int], num_stages: int) -> list[int]:
    """Return the `num_stages + 1` bounds of the cut whose costliest stage is cheapest; every stage gets a layer."""
    low, high = max(costs), sum(costs)
    while low < high:
        limit = (low + high) // 2
        if _fill(costs, num_stages, limit)[-1] == len(costs):
            high = limit
        else:
            low = limit + 1
    return _fill(costs, num_stages, low)


def _fill(costs: Sequence[int], num_stages: int, limit: int) -> list[int]:
    """Fill one stage after the other up to `limit`, leaving a layer for each that follows."""
    bounds = [0]
    for num_after in range(num_stages - 1, -1, -1):
        stop, cost = bounds[-1], 0
        while stop < len(costs) - num_after and cost + costs[stop] <= limit:
            cost += costs[stop]
            stop += 1
        bounds.append(stop)
    return bounds


def _ranges(bounds: Sequence[int]) -> tuple[BlockRange, ...]:
    return tuple(BlockRange(start=start, stop=stop) for start, stop in pairwise(bounds))
