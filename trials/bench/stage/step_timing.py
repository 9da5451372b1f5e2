"""One stage by itself: decode steps and prefills of a shape with random weights, alongside the floor of the device.

No broker, no queue: what is timed is a microbatch on the host until its result is on the host again, one after the
other. A part of that is the host's, which hands the work to the device and goes on; the device's own part is taken from
events in its stream. A pipeline with several microbatches in flight hides the former behind the latter.

    step    |── launch ──|············ waiting ···········|── result ──|
    GPU          |═══════════════ GPU ═══════════════════|
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import msgspec
import torch
from torch import Tensor

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.activation import Segment, SessionOpen
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from export.synthetic.shapes import shape_config
from stages.cached_heads import CachedHeads, put_heads
from stages.compute.loading import compute_dtype, is_fused, load_stage, stage_tensor_names
from stages.compute.microbatch import Microbatch
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.device.choice import choose_device
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import is_fp8_matrix
from stages.random_weights import DrawnTensors
from trials.bench.options import say
from trials.bench.spread import Spread
from trials.bench.stage.floor import DeviceRates, ItemSizes, StepNeeds, measure_rates, step_needs, synchronize
from trials.bench.stage.rows import StageBenchSettings, StageReport, StageRow

_GREEDY = SamplingSettings()
_SEED = 1
_SLOTS_AT_ONCE = 2**16


@dataclass(frozen=True, slots=True)
class _Timing:
    step_s: float
    launch_s: float
    device_s: float | None


@torch.inference_mode()
def measure_stage(settings: StageBenchSettings) -> StageReport:
    """Make a stage of random weights and time its steps.

    Raises:
        ConfigurationError: shape, layers or dtype are not possible.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    config = shape_config(settings.shape)
    blocks = _blocks(config, settings.num_layers)
    device, dtype = choose_device(settings.device), compute_dtype(config, settings.dtype)
    say("measuring what the device can do")
    rates = measure_rates(device, dtype)
    say(f"drawing the weights of {len(blocks)} layers")
    shapes = stage_tensor_names(config, blocks.start, blocks.stop)
    in_fp8 = [name for name in shapes if is_fp8_matrix(name)] if settings.quantize else []
    weights = DrawnTensors(shapes, device, dtype, in_fp8=in_fp8)
    started = time.perf_counter()
    stage = load_stage(config, blocks, weights, kv_capacity_tokens=settings.num_kv_tokens, options=_options(settings))
    synchronize(device)
    load_s = time.perf_counter() - started
    bench = _StageBench(stage, settings, rates)
    rows = []
    for num_sessions in settings.batch_sizes:
        say(f"decode, {num_sessions} sessions")
        rows.append(bench.decode(num_sessions))
    for num_prompts in settings.prefill_prompts:
        say(f"prefill, {num_prompts} prompts of {settings.context} tokens")
        rows.append(bench.mixed(0, num_prompts))
    for num_decoded, num_prompts in settings.mixed:
        say(f"mixed, {num_decoded} sessions and {num_prompts} prompts of {settings.context} tokens")
        rows.append(bench.mixed(num_decoded, num_prompts))
    return StageReport(rates=rates, num_weight_bytes=weights.num_bytes, load_s=load_s, rows=tuple(rows))


def _options(settings: StageBenchSettings) -> ComputeOptions:
    return ComputeOptions(
        settings.device,
        settings.dtype,
        fp8_product=settings.fp8_product,
        kv_dtype=settings.kv_dtype,
        is_deterministic=settings.is_deterministic,
        max_batch_tokens=settings.num_tokens_most,
        max_step_sessions=settings.num_decoded_most,
    )


def _blocks(config: ModelConfig, num_layers: int | None) -> BlockRange:
    most = config.text.num_layers
    if num_layers is not None and num_layers > most:
        raise ConfigurationError(f"the shape has {most} layers to take, not {num_layers}", field="layers")
    return BlockRange(start=0, stop=num_layers or most)


def _fill(cached: CachedHeads, device: torch.device) -> None:
    """Write random numbers into all slots of a layer, some at a time."""
    num_slots, *heads = cached.shape
    for slots in torch.split(torch.arange(num_slots, device=device), _SLOTS_AT_ONCE):
        put_heads(cached, slots, torch.randn(len(slots), *heads, dtype=cached.dtype, device=device))


class _StageBench:
    def __init__(self, stage: StageCompute, settings: StageBenchSettings, rates: DeviceRates) -> None:
        self._stage = stage
        self._settings = settings
        self._rates = rates
        self._keeps_fp8 = settings.quantize is not None and is_fused(_options(settings), stage.dtype, stage.device)
        self._chance = torch.Generator().manual_seed(_SEED)
        for layer in range(len(stage.blocks)):  # zeros would be computed faster on a GPU, which then draws less power
            for cached in (stage.kv.keys(layer), stage.kv.values(layer)):
                _fill(cached, stage.device)

    def decode(self, num_sessions: int) -> StageRow:
        """Time steps of one new token for each session; all hold `context` tokens before the first."""
        settings = self._settings
        names = self._open("decode", num_sessions, cached=settings.context)
        steps = [
            self._step([self._segment(name, settings.context + step, 1) for name in names])
            for step in range(settings.num_warm_up + settings.num_steps)
        ]
        self._close(names)
        queued_s = self._in_turn(num_sessions) if self._stage.device.type == "cuda" else None
        length = settings.context + settings.num_warm_up + settings.num_steps // 2
        needs = self._needs(num_sessions, num_sessions * length, num_sessions * length, num_sessions)
        return msgspec.structs.replace(self._row("decode", num_sessions, num_sessions, steps, needs), queued_s=queued_s)

    def _in_turn(self, num_sessions: int) -> Spread:
        """Time steps of two sets of sessions in turn, each enqueued before the last has ended, as a pipeline does."""
        settings = self._settings
        sets = [self._open(kind, num_sessions, cached=settings.context) for kind in ("odd", "even")]
        batches = [
            self._batch([self._segment(name, settings.context + step, 1) for name in names])
            for step in range((settings.num_warm_up + settings.num_steps) // 2)
            for names in sets
        ]
        ended, before = [], self._stage.launch(batches[0])
        for batch in batches[1:]:
            launched = self._stage.launch(batch)
            before.collect()
            ended.append(time.perf_counter())
            before = launched
        before.collect()
        for names in sets:
            self._close(names)
        return Spread.of([after - first for first, after in pairwise(ended)][settings.num_warm_up :])

    def mixed(self, num_decoded: int, num_prompts: int) -> StageRow:
        """Time whole prompts of `context` tokens, new ones in every step, and one token each of other sessions."""
        settings, context = self._settings, self._settings.context
        decoded = self._open("decode", num_decoded, cached=context)
        steps = []
        for step in range(settings.num_warm_up + settings.num_steps):
            prompts = self._open("prompt", num_prompts, cached=0)
            segments = [self._segment(name, 0, context) for name in prompts]  # first, as the scheduler puts them
            segments += [self._segment(name, context + step, 1) for name in decoded]
            steps.append(self._step(segments))
            self._close(prompts)
        self._close(decoded)
        length = context + settings.num_warm_up + settings.num_steps // 2
        num_tokens, num_sessions = num_decoded + num_prompts * context, num_decoded + num_prompts
        pairs = num_decoded * length + num_prompts * context * (context + 1) // 2
        needs = self._needs(num_tokens, num_decoded * length + num_prompts * context, pairs, num_sessions)
        return self._row("mixed" if num_decoded else "prefill", num_sessions, num_tokens, steps, needs)

    def _open(self, kind: str, num_sessions: int, *, cached: int) -> list[str]:
        room = self._settings.context + self._settings.num_warm_up + self._settings.num_steps
        names = [f"bench-{kind}-{index}" for index in range(num_sessions)]
        for name in names:
            self._stage.open(
                SessionOpen(session=name, attempt=1, num_kv_tokens=room, num_prompt_tokens=room, sampling=_GREEDY)
            )
            if cached:  # the cache holds random numbers already
                self._stage.kv.advance((name, 1), 0, cached)
        return names

    def _close(self, names: Sequence[str]) -> None:
        for name in names:
            self._stage.close(name, 1)

    def _segment(self, name: str, start: int, count: int) -> Segment:
        return Segment(session=name, attempt=1, start=start, count=count, wants_token=self._stage.is_last)

    def _batch(self, segments: Sequence[Segment]) -> Microbatch:
        positions = torch.cat(
            [torch.arange(each.start, each.start + each.count, dtype=torch.int32) for each in segments]
        ).expand(3, -1)
        return Microbatch(tuple(segments), positions, token_ids=self._random_tokens(positions.shape[1]))

    def _step(self, segments: Sequence[Segment]) -> _Timing:
        batch = self._batch(segments)
        synchronize(self._stage.device)
        started = time.perf_counter()
        launched = self._stage.launch(batch)
        enqueued = time.perf_counter()
        launched.collect()
        ended = time.perf_counter()
        return _Timing(ended - started, enqueued - started, launched.device_s)

    def _random_tokens(self, num_tokens: int) -> Tensor:
        """Draw other tokens for every session: with the same ones all would choose the same experts."""
        vocab_size = self._stage.config.text.vocab_size
        return torch.randint(vocab_size, (num_tokens,), generator=self._chance, dtype=torch.int32)

    def _needs(self, num_tokens: int, num_cached: int, num_pairs: int, num_sampled: int) -> StepNeeds:
        text, itemsize = self._stage.config.text, self._stage.dtype.itemsize
        return step_needs(
            text,
            len(self._stage.blocks),
            num_tokens=num_tokens,
            num_cached_tokens=num_cached,
            num_pairs=num_pairs,
            num_sampled=num_sampled if self._stage.is_last else 0,
            itemsizes=ItemSizes(
                weight=1 if self._keeps_fp8 else itemsize,
                kv=1 + 2 / text.head_dim if self._settings.kv_dtype == "fp8" else itemsize,
                other=itemsize,
            ),
        )

    def _row(
        self,
        kind: Literal["decode", "prefill", "mixed"],
        num_sessions: int,
        num_tokens: int,
        steps: Sequence[_Timing],
        needs: StepNeeds,
    ) -> StageRow:
        floor_s, bound = needs.floor(self._rates)
        timed = steps[self._settings.num_warm_up :]
        device_s = [step.device_s for step in timed if step.device_s is not None]
        return StageRow(
            kind=kind,
            num_sessions=num_sessions,
            num_tokens=num_tokens,
            step_s=Spread.of([step.step_s for step in timed]),
            launch_s=Spread.of([step.launch_s for step in timed]),
            device_s=Spread.of(device_s) if device_s else None,
            floor_s=floor_s,
            bound=bound,
        )
