"""Stages with a GPU each, in simulated time: a step of n tokens takes `step_s + n * token_s`, one step at a time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker_pipeline.messages.activation import MicrobatchResult, StageTiming
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedBatch
from broker_pipeline.scheduling.routes import StageInfo
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.scheduling.session_state import SessionState
from tests.kit.simulated.stages import prompt_of


@dataclass(frozen=True, slots=True)
class SimulatedGpu:
    """Seconds of a step and of each of its tokens on every stage; of a way around, `outside_s` pass between stages.

    A share `spread` of that is random, exponentially: most hops are short, a few take several times as long.
    """

    step_s: float = 0.007
    token_s: float = 0.027e-3
    outside_s: float = 0.006
    num_stages: int = 1
    spread: float = 0.0

    def hop_s(self, rng: random.Random) -> float:
        mean_s = self.outside_s / (self.num_stages + 1)
        return mean_s * (1 - self.spread + self.spread * rng.expovariate(1.0))

    def seconds(self, num_tokens: float) -> float:
        return self.step_s + num_tokens * self.token_s

    def ideal_rate(self, num_sessions: int, num_prompt: int, num_output: int) -> float:
        """Sessions ended per second if every one got a token in every round, at the best number of microbatches."""
        num_new = num_sessions / num_output
        num_tokens = num_sessions - num_new + num_new * num_prompt
        steps = [(count, self.seconds(num_tokens / count)) for count in range(1, 65)]
        return num_new / min(max(count * step, self.num_stages * step + self.outside_s) for count, step in steps)


@dataclass(repr=False, eq=False)
class GpuRun:
    """A pipeline in which every session that ends is followed by one that was ready `num_ahead` before it."""

    gpu: SimulatedGpu
    num_sessions: int
    num_prompt: int = 219
    num_output: int = 64
    max_batch_tokens: int = 4096
    num_ahead: int = 32
    now: float = 0.0
    num_ended: int = 0
    num_computed: int = 0
    sent: list[PlannedBatch] = field(default_factory=list)
    longest_pause_s: float = 0.0
    busy_s: float = 0.0
    """Seconds that each stage has computed for what was sent since `run` began."""
    _spoke_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_stages = self.gpu.num_stages
        self.scheduler = Scheduler(num_stages, SchedulerLimits(max_sessions=self.num_sessions))
        for name, start in zip(self._names, range(num_stages), strict=True):
            blocks = BlockRange(start=start, stop=start + 1)
            self.scheduler.join(StageInfo(name, name, f"s.{name}", blocks, 10_000_000, self.max_batch_tokens))
        self._free_at = dict.fromkeys(self._names, 0.0)
        self._rng = random.Random(1)
        self._prompt = prompt_of(self.num_prompt)
        self._orders, self._ties = itertools.count(), itertools.count()
        self._answers: list[tuple[float, int, MicrobatchResult]] = []
        for _ in range(self.num_sessions + self.num_ahead):
            self._submit()

    @property
    def _names(self) -> list[str]:
        """Return the stages in order."""
        return [f"w{index}" for index in range(self.gpu.num_stages)]

    def run(self, seconds: float) -> float:
        """Go on for so long and return how many sessions' tokens were computed per second.

        Not the sessions that ended, since these come in waves.
        """
        before, until = self.num_computed, self.now + seconds
        self.sent.clear()
        self.longest_pause_s = self.busy_s = 0.0
        self._plan()
        while self._answers and self._answers[0][0] < until:
            self.now, _, result = heapq.heappop(self._answers)
            outcome = self.scheduler.complete(result, self.now)
            assert outcome.microbatch is not None
            self.num_computed += outcome.microbatch.num_tokens
            for sampled in outcome.sampled:
                self._speak(sampled.session)
            self._plan()
        self.now = until
        return (self.num_computed - before) / (self.num_prompt + self.num_output - 1) / seconds

    def _submit(self) -> None:
        order = next(self._orders)
        (route,) = self.scheduler.routes.open_routes
        session = SessionState(
            key=SessionKey(f"s{order}", 1),
            order=order,
            route=route,
            prompt=self._prompt,
            sampling=SamplingSettings(),
            num_kv_tokens=self.num_prompt + self.num_output,
        )
        assert self.scheduler.add(session, self.now) is None

    def _speak(self, session: SessionState) -> None:
        name = session.key.session
        self.longest_pause_s = max(self.longest_pause_s, self.now - self._spoke_at.get(name, self.now))
        self._spoke_at[name] = self.now
        if len(session.generated) == self.num_output:
            self.scheduler.release(name)
            del self._spoke_at[name]
            self.num_ended += 1
            self._submit()

    def _plan(self) -> None:
        for microbatch in self.scheduler.plan(self.now):
            at, seconds, timings = self.now, self.gpu.seconds(microbatch.num_tokens), []
            for name in self._names:
                arrives = at + self.gpu.hop_s(self._rng)
                starts = max(arrives, self._free_at[name])
                at = self._free_at[name] = starts + seconds
                timings.append(StageTiming(worker=name, queue_s=starts - arrives, compute_s=seconds))
            result = _answer(microbatch, timings)
            heapq.heappush(self._answers, (at + self.gpu.hop_s(self._rng), next(self._ties), result))
            self.busy_s += seconds
            self.sent.append(microbatch)


def num_prompt_tokens(microbatches: Sequence[PlannedBatch]) -> list[int]:
    """Tokens that are not decode steps, of each microbatch."""
    return [sum(segment.count for segment in each.segments if segment.count > 1) for each in microbatches]


def _answer(microbatch: PlannedBatch, timings: Sequence[StageTiming]) -> MicrobatchResult:
    tokens = tuple(
        SampledToken(session=segment.session.key.session, attempt=1, position=segment.stop, token_id=1)
        for segment in microbatch.segments
        if segment.wants_token
    )
    return MicrobatchResult(
        pipeline="", fingerprint="", epoch=1, microbatch=microbatch.number, worker=timings[-1].worker,
        tokens=tokens, timings=tuple(timings),
    )  # fmt: skip
