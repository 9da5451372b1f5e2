"""From tensors by name to a stage or a vision tower that computes.

Names are the hub's, experts are in the runtime layout (see `qwen3_vl.tensors`). A mapping may be lazy: every tensor is
asked for once, in the order of its names, so that reading goes file by file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import BlockRange
from stages.compute.checked_tensors import CheckedTensors, check_names
from stages.compute.decoder import Decoder
from stages.compute.eager.batch_invariant import (
    BatchInvariantAttention,
    batch_invariant_experts,
    batch_invariant_linear,
)
from stages.compute.eager.decoder import EagerDecoder, StageWeights
from stages.compute.grammar.grammars import Grammars
from stages.compute.kv.cache import KVCache
from stages.compute.kv.capacity import KVRoom, kv_token_bytes
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.device.choice import choose_device
from stages.device.hardware import require_compiler
from stages.qwen3_vl.attention import attention_named
from stages.qwen3_vl.config import SUPPORTED_DTYPES, ModelConfig
from stages.qwen3_vl.tensors import Shapes, stage_shapes, vision_shapes
from stages.qwen3_vl.vision import VisionTower
from stages.qwen3_vl.vision_ops import EagerVisionOps, FusedVisionOps, VisionOps, choose_vision_ops
from stages.weights.fp8_matrix import Weight, plain
from stages.weights.tower_in_fp8 import tower_in_fp8


def compute_dtype(config: ModelConfig, name: str | None) -> torch.dtype:
    """Return the dtype that a setting names, or the checkpoint's.

    Raises:
        ConfigurationError: anything but bfloat16 and float32; float16 overflows in the vision tower.
    """
    name = name or config.dtype
    if name not in SUPPORTED_DTYPES:
        raise ConfigurationError(f"dtype {name} is not supported; use {' or '.join(SUPPORTED_DTYPES)}", field="dtype")
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def check_blocks(config: ModelConfig, blocks: BlockRange) -> None:
    """Raise ConfigurationError unless the range is a non-empty part of the model's layers."""
    if not 0 <= blocks.start < blocks.stop <= config.text.num_layers:
        raise ConfigurationError(
            f"blocks {blocks.start}:{blocks.stop} are no range within the model's {config.text.num_layers} layers",
            field="blocks",
        )


def stage_tensor_names(config: ModelConfig, start: int, stop: int) -> Shapes:
    """Return names and shapes of the tensors that the stage with decoder layers `[start, stop)` needs."""
    check_blocks(config, BlockRange(start=start, stop=stop))
    return stage_shapes(config, start, stop)


def vision_tensor_names(config: ModelConfig) -> Shapes:
    """Return names and shapes of the tensors that the vision tower needs."""
    return vision_shapes(config)


def load_stage(
    config: ModelConfig,
    blocks: BlockRange,
    tensors: Mapping[str, Weight],
    *,
    kv_capacity_tokens: int | KVRoom,
    options: ComputeOptions | None = None,
    visual_rows: VisualRowBuffer | None = None,
    grammars: Grammars | None = None,
) -> StageCompute:
    """Build the stage that owns decoder layers `blocks` from exactly its tensors.

    `tensors` may be lazy: each is asked for once. Without `visual_rows` the stage gets a buffer of its own;
    without `grammars` it refuses structured outputs.

    Raises:
        ConfigurationError: the range or the dtype is not possible, there is no such device, or no room for KV.
        ArtifactError: tensors are missing, superfluous, or of a wrong shape or dtype; the message lists them.
    """
    options = options or ComputeOptions()
    dtype, device = compute_dtype(config, options.dtype), choose_device(options.device)
    shapes = stage_tensor_names(config, blocks.start, blocks.stop)
    check_names(tensors, shapes)
    source = CheckedTensors(tensors, shapes, dtype, device)
    kv_room = KVRoom(kv_capacity_tokens) if isinstance(kv_capacity_tokens, int) else kv_capacity_tokens
    decoder: Decoder
    if is_fused(options, dtype, device):
        from stages.compute.fused.loading import load_fused  # noqa: PLC0415 - needs Triton, which comes with CUDA

        decoder, kv = load_fused(config, blocks, source, kv_room, options)
    else:
        decoder, kv = _load_eager(config, blocks, source, kv_room, options)
    buffer = visual_rows or VisualRowBuffer(max_bytes=2**31, ttl_s=600.0)
    return StageCompute(config, blocks, decoder, kv=kv, visual_rows=buffer, grammars=grammars)


def is_fused(options: ComputeOptions, dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether the kernels for GPUs compute: on a GPU and in bf16, unless another attention is asked for."""
    return device.type == "cuda" and dtype == torch.bfloat16 and options.attention == "auto"


def _load_eager(
    config: ModelConfig, blocks: BlockRange, source: CheckedTensors, kv_room: KVRoom, options: ComputeOptions
) -> tuple[Decoder, KVCache]:
    weights = StageWeights(
        blocks=tuple(source.block(config, layer) for layer in range(blocks.start, blocks.stop)),
        **source.ends(config, blocks),
    )
    text, device = config.text, source.device
    in_fp8 = options.kv_in_fp8
    num_tokens = kv_room.fit(kv_token_bytes(text, len(blocks), source.dtype, in_fp8=in_fp8), device)
    kv = KVCache(len(blocks), num_tokens, text.num_kv_heads, text.head_dim, source.dtype, device, in_fp8=in_fp8)
    if options.is_deterministic:
        return EagerDecoder(
            text,
            blocks.start,
            weights,
            kv=kv,
            attention=BatchInvariantAttention(),
            experts=batch_invariant_experts,
            linear=batch_invariant_linear,
        ), kv
    return EagerDecoder(text, blocks.start, weights, kv=kv, attention=attention_named(options.attention)), kv


def load_vision(
    config: ModelConfig, tensors: Mapping[str, Weight], options: ComputeOptions | None = None
) -> VisionTower:
    """Build the vision tower from exactly its tensors; errors as for `load_stage`."""
    options = options or ComputeOptions()
    dtype, device = compute_dtype(config, options.dtype), choose_device(options.device)
    shapes = vision_tensor_names(config)
    check_names(tensors, shapes)
    loaded = CheckedTensors(tensors, shapes, dtype, device).all()
    attention = attention_named(options.attention)
    if is_fused(options, dtype, device):
        require_compiler()
    ops: VisionOps = EagerVisionOps(attention)
    if options.attention == "auto":
        ops = choose_vision_ops(attention, config.vision.head_dim, device, dtype)
    if not options.fp8_tower:
        return VisionTower(config, loaded, attention, ops)
    in_fp8 = tower_in_fp8(loaded)
    if isinstance(ops, FusedVisionOps):
        from stages.compute.fused.linear_backends import choose_fp8_product, has_fp8_numbers  # noqa: PLC0415 - Triton

        if has_fp8_numbers(device):
            return VisionTower(config, in_fp8, attention, FusedVisionOps(choose_fp8_product("auto", device)))
    return VisionTower(config, {name: plain(weight, dtype) for name, weight in in_fp8.items()}, attention, ops)
