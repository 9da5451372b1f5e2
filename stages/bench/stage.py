"""One stage by itself: decode steps and prefills of a shape with random weights, beside the floor of the device.

No broker, no queue: what is timed is `StageCompute.run`, from a microbatch on the host to its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import torch
from torch import Tensor

from broker_pipeline.bench.spread import Spread
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages import BlockRange, SamplingSettings, Segment, SessionOpen
from stages.bench.floor import DeviceRates, StepNeeds, measure_rates, step_needs, synchronize
from stages.bench.shapes import shape_config
from stages.compute.loading import ComputeOptions, compute_dtype, load_stage, stage_tensor_names
from stages.compute.microbatch import Microbatch
from stages.compute.stage_compute import StageCompute
from stages.qwen3_vl.config import ModelConfig
from stages.random_weights import draw_weights

_GREEDY = SamplingSettings()
_SEED = 1


class StageBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. The stage owns the first `num_layers` layers; only with all of them it has the head."""

    shape: str
    num_layers: int | None
    batch_sizes: tuple[int, ...]
    context: int
    """Tokens that a session holds when it is decoded, and that a prompt has."""
    prefill_prompts: tuple[int, ...]
    """Numbers of prompts that are prefilled together."""
    num_steps: int
    num_warm_up: int
    device: str
    dtype: str | None
    num_threads: int | None


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of step."""

    kind: Literal["decode", "prefill"]
    num_sessions: int
    num_tokens: int
    step_s: Spread
    floor_s: float
    bound: str
    """What sets the floor: "memory" or "compute"."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens computed per second."""
        return self.num_tokens / self.step_s.median

    @property
    def floor_share(self) -> float:
        """The floor as a part of what the step takes: 1 could not be better."""
        return self.floor_s / self.step_s.median


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """The device's rates, and what the stage makes of them."""

    rates: DeviceRates
    num_weight_bytes: int
    rows: tuple[StageRow, ...]


def measure_stage(settings: StageBenchSettings, say: Callable[[str], None] = lambda _: None) -> StageReport:
    """Make a stage of random weights and time its steps.

    Raises:
        ConfigurationError: shape, layers or dtype are not possible.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    config = shape_config(settings.shape)
    blocks = _blocks(config, settings.num_layers)
    device, dtype = torch.device(settings.device), compute_dtype(config, settings.dtype)
    say("measuring what the device can do")
    rates = measure_rates(device, dtype)
    say(f"drawing the weights of {len(blocks)} layers")
    names = stage_tensor_names(config, blocks.start, blocks.stop)
    weights = draw_weights(names, device, dtype)
    most = max((*settings.batch_sizes, *settings.prefill_prompts))
    room = settings.context + settings.num_warm_up + settings.num_steps
    options = ComputeOptions(settings.device, settings.dtype)
    stage = load_stage(config, blocks, weights, kv_capacity_tokens=most * room, options=options)
    bench = _StageBench(stage, settings, rates)
    rows = []
    for num_sessions in settings.batch_sizes:
        say(f"decode, {num_sessions} sessions")
        rows.append(bench.decode(num_sessions))
    for num_sessions in settings.prefill_prompts:
        say(f"prefill, {num_sessions} prompts of {settings.context} tokens")
        rows.append(bench.prefill(num_sessions))
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    return StageReport(rates=rates, num_weight_bytes=num_bytes, rows=tuple(rows))


def _blocks(config: ModelConfig, num_layers: int | None) -> BlockRange:
    most = config.text.num_layers
    if num_layers is not None and num_layers > most:
        raise ConfigurationError(f"the shape has {most} layers to take, not {num_layers}", field="layers")
    return BlockRange(start=0, stop=num_layers or most)


class _StageBench:
    def __init__(self, stage: StageCompute, settings: StageBenchSettings, rates: DeviceRates) -> None:
        self._stage = stage
        self._settings = settings
        self._rates = rates
        self._chance = torch.Generator().manual_seed(_SEED)

    def decode(self, num_sessions: int) -> StageRow:
        """Steps of one new token for each session; all hold `context` tokens before the first."""
        context = self._settings.context
        names = self._open(num_sessions, cached=context)
        steps = [
            self._step(names, context + step, 1)
            for step in range(self._settings.num_warm_up + self._settings.num_steps)
        ]
        self._close(names)
        length = context + self._settings.num_warm_up + self._settings.num_steps // 2
        needs = self._needs(num_sessions, num_sessions * length, num_sessions * length, num_sessions)
        return self._row("decode", num_sessions, num_sessions, steps, needs)

    def prefill(self, num_prompts: int) -> StageRow:
        """Whole prompts of `context` tokens, packed into one microbatch; each time for new sessions."""
        context = self._settings.context
        steps = []
        for _ in range(self._settings.num_warm_up + self._settings.num_steps):
            names = self._open(num_prompts, cached=0)
            steps.append(self._step(names, 0, context))
            self._close(names)
        pairs = num_prompts * context * (context + 1) // 2
        needs = self._needs(num_prompts * context, num_prompts * context, pairs, num_prompts)
        return self._row("prefill", num_prompts, num_prompts * context, steps, needs)

    def _open(self, num_sessions: int, *, cached: int) -> list[str]:
        room = self._settings.context + self._settings.num_warm_up + self._settings.num_steps
        names = [f"bench-{index}" for index in range(num_sessions)]
        for name in names:
            self._stage.open(
                SessionOpen(session=name, attempt=1, num_kv_tokens=room, num_prompt_tokens=room, sampling=_GREEDY)
            )
            if cached:  # what the cache holds changes no time
                self._stage.kv.advance((name, 1), 0, cached)
        return names

    def _close(self, names: Sequence[str]) -> None:
        for name in names:
            self._stage.close(name, 1)

    def _step(self, names: Sequence[str], start: int, count: int) -> float:
        segments = tuple(
            Segment(session=name, attempt=1, start=start, count=count, wants_token=self._stage.is_last)
            for name in names
        )
        positions = torch.arange(start, start + count, dtype=torch.int32).repeat(len(names)).expand(3, -1)
        batch = Microbatch(segments, positions, token_ids=self._random_tokens(len(names) * count))
        device = self._stage.device
        synchronize(device)
        started = time.perf_counter()
        self._stage.run(batch)
        synchronize(device)
        return time.perf_counter() - started

    def _random_tokens(self, num_tokens: int) -> Tensor:
        """Different for every session, or all of them would choose the same experts."""
        vocab_size = self._stage.config.text.vocab_size
        return torch.randint(vocab_size, (num_tokens,), generator=self._chance, dtype=torch.int32)

    def _needs(self, num_tokens: int, num_cached: int, num_pairs: int, num_sampled: int) -> StepNeeds:
        return step_needs(
            self._stage.config.text,
            len(self._stage.blocks),
            num_tokens=num_tokens,
            num_cached_tokens=num_cached,
            num_pairs=num_pairs,
            num_sampled=num_sampled if self._stage.is_last else 0,
            itemsize=self._stage.dtype.itemsize,
        )

    def _row(
        self,
        kind: Literal["decode", "prefill"],
        num_sessions: int,
        num_tokens: int,
        steps: Sequence[float],
        needs: StepNeeds,
    ) -> StageRow:
        floor_s, bound = needs.floor(self._rates)
        return StageRow(
            kind=kind,
            num_sessions=num_sessions,
            num_tokens=num_tokens,
            step_s=Spread.of(steps[self._settings.num_warm_up :]),
            floor_s=floor_s,
            bound=bound,
        )
