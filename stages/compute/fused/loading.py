"""A stage's decoder on a GPU, and room for its KV: what is free after weights, graphs, activations and a margin.

    GPU   [ weights | graphs, activations of the largest microbatch, sampling | others' | margin |      KV       ]
                       └──────────────── measured by doing it once ───────────┘                    └ what is left ┘

So no microbatch that is admitted can run out of memory: what does not fit is refused when KV is reserved.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
from torch import Tensor

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from stages.compute.checked_tensors import CheckedTensors
from stages.compute.fused.attention import FastKernels, InvariantKernels
from stages.compute.fused.blocks import ExpertBlock, PackedBlock, PackedExperts
from stages.compute.fused.captured_passes import most_wanted, pass_sizes
from stages.compute.fused.captured_steps import step_sizes
from stages.compute.fused.decoder import FusedDecoder
from stages.compute.fused.linear_backends import (
    FastLinear,
    LinearBackend,
    choose_fp8_product,
    has_fp8_numbers,
    prove_linears,
)
from stages.compute.fused.model import FusedModel, FusedWeights
from stages.compute.kv.cache import KVCache
from stages.compute.kv.capacity import MOST_GPU_TOKENS, KVRoom, kv_token_bytes, require_room
from stages.compute.microbatch import Microbatch
from stages.compute.options import ComputeOptions
from stages.compute.sampling.sampler import SessionSampler, launch_sampling
from stages.device.hardware import gpu_memory, require_compiler
from stages.kernels.experts.mlp import fused_experts
from stages.kernels.experts.routing import choose_experts
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.text_config import TextConfig

_MARGIN_SHARE = 0.03  # of the GPU: what allocators lose, and what CUDA takes later
_SAMPLED_BYTES = 8  # for each logit of a token that is sampled with filters
_SAMPLING_BYTES = 200 * 2**20  # for groups of tokens that are sampled without, 34 MB by kernels and 160 adjusted
_WARM_UP = "warm-up"
_DRAWS = (
    SamplingSettings(temperature=1.0, top_k=1),
    SamplingSettings(temperature=1.0, top_p=0.9),
    SamplingSettings(temperature=1.0, top_k=1, logit_bias={0: 0.0}),  # in fp32
)
_STRIDE = 128
_FEWEST_CODED = 32  # values of a head; half of them are a product's fewest inputs


def load_fused(
    config: ModelConfig, blocks: BlockRange, source: CheckedTensors, room: KVRoom, options: ComputeOptions
) -> tuple[FusedDecoder, KVCache]:
    """Take a stage's tensors block by block, and build kernels and graphs.

    Raises:
        ConfigurationError: there is no room for KV.
        ArtifactError: a tensor has a wrong shape or dtype.
    """
    _require_kernels(config.text)
    if options.kv_in_fp8:
        require_codes(config.text, source.device)
    try:
        packed = tuple(
            PackedBlock.pack(
                source.layer(layer, keep_fp8=has_fp8_numbers(source.device)),
                source.dtype,
                sparse=config.text.layer_is_sparse(layer),
            )
            for layer in range(blocks.start, blocks.stop)
        )
        weights = FusedWeights(packed, **source.ends(config, blocks))
        if options.is_deterministic is None:
            options = replace(options, is_deterministic=not weights.is_fp8)
        linears = _linears(options, weights, source.device)
        num_tokens = room.num_tokens or _measured_tokens(config, blocks, weights, linears, source, room, options)
        return _build(config, blocks, weights, linears, source, num_tokens, options)
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"blocks {blocks.start}:{blocks.stop}, their largest microbatch and KV do not fit onto {source.device}: "
            f"{error}; give this stage fewer blocks, or less of --kv-tokens or --max-batch-tokens",
            field="blocks",
        ) from error


def _require_kernels(text: TextConfig) -> None:
    """Raise ConfigurationError where the kernels cannot be built for this model, or on this host."""
    if text.head_dim & (text.head_dim - 1):
        raise ConfigurationError(
            f"the kernels need a power of two as head_dim, not {text.head_dim}; use --attention sdpa", field="attention"
        )
    require_compiler()


def require_codes(text: TextConfig, device: torch.device) -> None:
    """Raise ConfigurationError where the kernels cannot hold keys and values in FP8."""
    problem = ""
    if not has_fp8_numbers(device):
        problem = f"{device} has no FP8, which GPUs have from Ada and Hopper on"
    elif text.head_dim < _FEWEST_CODED:
        problem = f"the kernels need a head_dim of {_FEWEST_CODED} for it, not {text.head_dim}"
    if problem:
        raise ConfigurationError(
            f"--kv-dtype fp8: {problem}; leave it out, or give `stage` --attention sdpa", field="kv_dtype"
        )


def _build(
    config: ModelConfig,
    blocks: BlockRange,
    weights: FusedWeights,
    linears: LinearBackend,
    source: CheckedTensors,
    num_tokens: int,
    options: ComputeOptions,
    *,
    only_largest: bool = False,
) -> tuple[FusedDecoder, KVCache]:
    text = config.text
    in_fp8 = options.kv_in_fp8
    kv = KVCache(len(blocks), num_tokens, text.num_kv_heads, text.head_dim, source.dtype, source.device, in_fp8=in_fp8)
    model = FusedModel(
        text,
        blocks.start,
        weights,
        kv,
        linears=linears,
        experts=expert_block(
            linears, deterministic=bool(options.is_deterministic), rows_in_fp8=options.fp8_product != "weight-only"
        ),
        num_deepstack_levels=config.vision.num_deepstack_levels,
    )
    decoder = FusedDecoder(model, kv, InvariantKernels(text) if options.is_deterministic or in_fp8 else FastKernels())
    with torch.inference_mode():
        if options.max_step_sessions:
            decoder.capture(options.max_step_sessions, options.max_batch_tokens, only_largest=only_largest)
        _warm_up(decoder, kv, text, min(options.max_batch_tokens, num_tokens), is_first=blocks.start == 0)
    return decoder, kv


def _warm_up(decoder: FusedDecoder, kv: KVCache, text: TextConfig, num_tokens: int, *, is_first: bool) -> None:
    """Launch a chunk and, where there is room, a decode token, and draw: builds every kernel that graphs do not have.

    Such a microbatch may come at any time, with more chunks than a graph takes, and needs memory alongside theirs.
    """
    counts = [num_tokens - 1, 1] if num_tokens > 2 else [num_tokens]
    segments = []
    for number, count in enumerate(counts):
        kv.reserve((_WARM_UP, number), count)
        segments.append(Segment(session=_WARM_UP, attempt=number, start=0, count=count, wants_token=True))
    positions, ids = torch.zeros(3, num_tokens, dtype=torch.int32), torch.zeros(num_tokens, dtype=torch.int32)
    hidden = torch.zeros(num_tokens, text.hidden_size, dtype=decoder.dtype)
    inputs = {"token_ids": ids} if is_first else {"hidden": hidden}
    batch = Microbatch(tuple(segments), positions, **inputs)
    computed = decoder.launch(batch, None, range(len(segments)))
    if computed.logits is not None and computed.scan is not None:
        first = replace(computed.scan, greedy=computed.scan.greedy[:1])
        for settings in _DRAWS:
            launch_sampling(computed.logits[:1], [SessionSampler(settings)], [0], first)
    torch.cuda.synchronize(decoder.device)
    for number in range(len(counts)):
        kv.release((_WARM_UP, number))


def _measured_tokens(
    config: ModelConfig,
    blocks: BlockRange,
    weights: FusedWeights,
    linears: LinearBackend,
    source: CheckedTensors,
    room: KVRoom,
    options: ComputeOptions,
) -> int:
    """Return how many tokens fit, found by running the largest microbatch once with KV for no more than that."""
    device, text = source.device, config.text
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    decoder, kv = _build(config, blocks, weights, linears, source, options.max_batch_tokens, options, only_largest=True)
    token_bytes = kv_token_bytes(text, len(blocks), source.dtype, in_fp8=options.kv_in_fp8)
    needed = torch.cuda.max_memory_reserved(device) - before - kv.capacity_tokens * token_bytes
    del decoder, kv
    gc.collect()
    torch.cuda.empty_cache()
    if weights.head is not None:
        needed += options.max_step_sessions * text.vocab_size * _SAMPLED_BYTES + _SAMPLING_BYTES
    free, total = gpu_memory(device)
    left = free - needed - room.reserved_bytes - int(_MARGIN_SHARE * total)
    num_tokens = int(left * (room.share or 1.0)) // token_bytes
    require_room(num_tokens, token_bytes, left, device)
    return min(num_tokens, MOST_GPU_TOKENS)


def _linears(options: ComputeOptions, weights: FusedWeights, device: torch.device) -> LinearBackend:
    fp8_product = choose_fp8_product(options.fp8_product, device) if weights.is_fp8 else None
    if not options.is_deterministic:
        return FastLinear(fp8_product)
    with torch.inference_mode():
        return prove_linears(weights.matrices(), _numbers_of_rows(options), fp8_product)


def _numbers_of_rows(options: ComputeOptions) -> list[int]:
    """Return how many rows products of graphs have, and enough others for those that are launched."""
    steps, passes = step_sizes(max(options.max_step_sessions, 1)), pass_sizes(options.max_batch_tokens)
    wanted = {most_wanted(size, options.max_step_sessions) for size in passes}
    return sorted({*steps, *passes, *wanted, *range(_STRIDE, options.max_batch_tokens + _STRIDE, _STRIDE)})


def expert_block(linears: LinearBackend, *, deterministic: bool, rows_in_fp8: bool) -> ExpertBlock:
    """Return what routes rows and multiplies them by the kernels of `stages.kernels.experts`."""

    def experts(normed: Tensor, mlp: PackedExperts, num_chosen: int) -> Tensor:
        chosen, weights = choose_experts(linears.linear(normed, mlp.router), num_chosen)
        return fused_experts(
            normed, chosen, weights, mlp.gate_up, mlp.down, deterministic=deterministic, rows_in_fp8=rows_in_fp8
        )

    return experts
