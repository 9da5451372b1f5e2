"""From tensors by name to a stage or a vision tower that computes.

Names are the hub's, experts are in the runtime layout (see `qwen3_vl.tensors`). A mapping may be lazy: every tensor is
asked for once, in the order of its names, so that reading goes file by file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.errors import ArtifactError, ConfigurationError
from broker_pipeline.messages import BlockRange
from stages.compute.attention import AttentionName, attention_named
from stages.compute.decoder import EagerDecoder, StageWeights
from stages.compute.kv_cache import KVCache
from stages.compute.microbatch import RowSource
from stages.compute.stage_compute import StageCompute
from stages.qwen3_vl.config import SUPPORTED_DTYPES, ModelConfig
from stages.qwen3_vl.tensors import (
    EMBED_TOKENS,
    FINAL_NORM,
    LM_HEAD,
    Shapes,
    layer_prefix,
    stage_shapes,
    vision_shapes,
)
from stages.qwen3_vl.text import BlockWeights
from stages.qwen3_vl.vision import VisionTower
from stages.stage.row_buffer import RowBuffer

_MAX_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Where and how to compute. `dtype` None takes the checkpoint's own."""

    device: str = "cpu"
    dtype: str | None = None
    attention: AttentionName = "sdpa"


def compute_dtype(config: ModelConfig, name: str | None) -> torch.dtype:
    """The dtype that a setting names, or the checkpoint's.

    Raises:
        ConfigurationError: anything but bfloat16 and float32; float16 overflows in the vision tower.
    """
    name = name or config.dtype
    if name not in SUPPORTED_DTYPES:
        raise ConfigurationError(f"dtype {name} is not supported; use {' or '.join(SUPPORTED_DTYPES)}", field="dtype")
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def check_blocks(config: ModelConfig, blocks: BlockRange) -> None:
    """Raises ConfigurationError unless the range is a non-empty part of the model's layers."""
    if not 0 <= blocks.start < blocks.stop <= config.text.num_layers:
        raise ConfigurationError(
            f"blocks {blocks.start}:{blocks.stop} are no range within the model's {config.text.num_layers} layers",
            field="blocks",
        )


def stage_tensor_names(config: ModelConfig, start: int, stop: int) -> Shapes:
    """Names and shapes of the tensors that the stage with decoder layers `[start, stop)` needs."""
    check_blocks(config, BlockRange(start=start, stop=stop))
    return stage_shapes(config, start, stop)


def vision_tensor_names(config: ModelConfig) -> Shapes:
    """Names and shapes of the tensors that the vision tower needs."""
    return vision_shapes(config)


def load_stage(
    config: ModelConfig,
    blocks: BlockRange,
    tensors: Mapping[str, Tensor],
    *,
    kv_capacity_tokens: int,
    options: ComputeOptions | None = None,
    rows: RowSource | None = None,
) -> StageCompute:
    """Builds the stage that owns decoder layers `blocks` from exactly its tensors.

    `rows` is where visual rows wait; without it the stage gets a buffer of its own.

    Raises:
        ConfigurationError: the range or the dtype is not possible.
        ArtifactError: tensors are missing, superfluous, or of a wrong shape or dtype; the message lists them.
    """
    options = options or ComputeOptions()
    dtype, device = compute_dtype(config, options.dtype), torch.device(options.device)
    loaded = load_tensors(tensors, stage_tensor_names(config, blocks.start, blocks.stop), dtype, device)
    text = config.text
    kv = KVCache(len(blocks), kv_capacity_tokens, text.num_kv_heads, text.head_dim, dtype, device)
    weights = _stage_weights(config, blocks, loaded)
    attention = attention_named(options.attention)
    decoder = EagerDecoder(text, blocks.start, weights, kv=kv, attention=attention)
    return StageCompute(config, blocks, decoder, kv=kv, rows=rows or RowBuffer(max_bytes=2**31, ttl_s=600.0))


def load_vision(
    config: ModelConfig, tensors: Mapping[str, Tensor], options: ComputeOptions | None = None
) -> VisionTower:
    """Builds the vision tower from exactly its tensors; errors as for `load_stage`."""
    options = options or ComputeOptions()
    dtype, device = compute_dtype(config, options.dtype), torch.device(options.device)
    loaded = load_tensors(tensors, vision_tensor_names(config), dtype, device)
    return VisionTower(config, loaded, attention_named(options.attention))


def load_tensors(
    tensors: Mapping[str, Tensor], shapes: Shapes, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """The tensors named in `shapes`, checked, converted and moved; raises ArtifactError listing what is wrong."""
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    _raise_if_any("missing", missing)
    _raise_if_any("unexpected", unexpected)
    loaded: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype not in (torch.bfloat16, torch.float32):
            wrong.append(f"{name} {list(tensor.shape)} {tensor.dtype} (expected {list(shape)}, bfloat16 or float32)")
        elif not wrong:
            loaded[name] = tensor.to(device=device, dtype=dtype).contiguous()
    _raise_if_any("of a wrong shape or dtype", wrong)
    return loaded


def _raise_if_any(problem: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:_MAX_NAMES_SHOWN])
        more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
        raise ArtifactError(f"{len(names)} tensors are {problem}: {shown}{more}")


def _stage_weights(config: ModelConfig, blocks: BlockRange, tensors: Mapping[str, Tensor]) -> StageWeights:
    is_last = blocks.stop == config.text.num_layers
    return StageWeights(
        blocks=tuple(
            BlockWeights.from_tensors(tensors, layer_prefix(layer), sparse=config.text.layer_is_sparse(layer))
            for layer in range(blocks.start, blocks.stop)
        ),
        embed=tensors[EMBED_TOKENS] if blocks.start == 0 else None,
        norm=tensors[FINAL_NORM] if is_last else None,
        head=tensors[EMBED_TOKENS if config.tie_word_embeddings else LM_HEAD] if is_last else None,
    )
