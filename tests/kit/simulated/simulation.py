"""A scheduler with simulated stages, and a conductor's part in recovery: what is planned meets what stages accept."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field

from broker_pipeline.conductor.workers.worker_health import WorkerHealth
from broker_pipeline.errors import (
    ComputeError,
    Failure,
    NonFiniteLogitsError,
    PipelineError,
)
from broker_pipeline.messages.activation import MicrobatchResult, SessionFailure, StageTiming
from broker_pipeline.messages.jobs import FIRST, Turn
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import Lost, Outcome, PlannedBatch, Sampled
from broker_pipeline.scheduling.policies.circuit_breaker import BreakerLimits
from broker_pipeline.scheduling.policies.prefixes import prefix_keys
from broker_pipeline.scheduling.policies.retries import RetryLimits, RetryPolicy
from broker_pipeline.scheduling.policies.route_choice import Unwanted
from broker_pipeline.scheduling.routes import StageInfo
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.scheduling.session_state import SessionState
from tests.kit.simulated.stages import SimulatedStage, prompt_of, right_token, stage_worker

OUT_OF_STEP = {"kv_position", "kv_capacity", "session_unknown", "stale_attempt"}


@dataclass
class SimulatedJob:
    name: str
    order: int
    num_prompt: int
    max_tokens: int
    is_poison: bool
    retries: RetryPolicy
    generated: list[int] = field(default_factory=list)
    num_kv_tokens: int = 0
    turn: Turn = FIRST
    tenant: str = ""
    num_blamed: int = 0
    num_lost: int = 0
    outcome: str = ""
    failure: Failure | None = None


class Simulation:
    """A scheduler with everything around it: time, workers, a network of envelopes, jobs that recover."""

    def __init__(
        self, num_layers: int = 4, limits: SchedulerLimits | None = None, *, shares_prefixes: bool = False
    ) -> None:
        """With `shares_prefixes`, all prompts have the same tokens, and begin with each other's."""
        self.shares_prefixes = shares_prefixes
        self.scheduler = Scheduler(num_layers, limits)
        self.kept_share = (limits or SchedulerLimits()).kept_prefix_share
        self.health = WorkerHealth(BreakerLimits(num_blames=1), lambda: self.now)
        self.blamed: list[str] = []
        self.now = 0.0
        self.stages: dict[str, SimulatedStage] = {}
        self.suspended: set[str] = set()
        self.network: list[PlannedBatch] = []
        self.jobs: dict[str, SimulatedJob] = {}
        self.homeless: list[tuple[SimulatedJob, bool]] = []
        self.admitted: list[str] = []
        self.resumed: list[str] = []
        """Sessions that were preempted and had room again."""
        self.sick: set[str] = set()
        """Workers that fail whatever they are asked to compute."""
        self.seconds_per_token = 0.001
        """That stages say they take."""
        self._spoil: tuple[int | None, int] = (None, 0)
        self._attempts = itertools.count(1)
        self._instances = itertools.count(1)

    # --- workers ---

    def start_worker(self, name: str, start: int, stop: int, kv: int = 100, batch: int = 16) -> str:
        worker = stage_worker(name, start, stop, instance=next(self._instances), kv=kv, batch=batch)
        self.stages[worker.key] = SimulatedStage(worker)
        self.scheduler.join(worker)
        return worker.key

    def kill_worker(self, key: str) -> None:
        del self.stages[key]
        self.suspended.discard(key)
        self.lost(self.scheduler.leave(key, Failure("stage", "worker died", retryable=True)))

    def suspend(self, key: str) -> None:
        if key in self.stages and key not in self.suspended:
            self.suspended.add(key)
            self.lost(self.scheduler.suspend(key, Failure("deadline_exceeded", "no answer", retryable=True)))

    def probe_late(self) -> None:
        self.network += self.scheduler.batches.late_probes(self.now)

    def probe_all(self) -> None:
        for key in list(self.suspended):
            self.scheduler.batches.ask(key)
        self.plan()

    # --- jobs ---

    def submit(
        self,
        num_prompt: int,
        max_tokens: int,
        *,
        is_poison: bool = False,
        is_batch: bool = False,
        tenant: str = "",
    ) -> SimulatedJob:
        name = f"job{len(self.jobs)}"
        job = SimulatedJob(name, len(self.jobs), num_prompt, max_tokens, is_poison, RetryPolicy(RetryLimits()))
        job.num_kv_tokens, job.turn, job.tenant = num_prompt + max_tokens, Turn(is_batch), tenant
        self.jobs[name] = job
        self.homeless.append((job, False))
        return job

    def cancel(self, job: SimulatedJob) -> None:
        if not job.outcome:
            job.outcome = "cancelled"
            self.scheduler.release(job.name)
            self.homeless = [entry for entry in self.homeless if entry[0] is not job]

    def house(self) -> None:
        """Prepare whoever has no route, as the vision worker would."""
        waiting, self.homeless = self.homeless, []
        for job, is_alone in waiting:
            unwanted = Unwanted(job.retries.failed_on, self.health.spared)
            num_known = job.num_prompt + len(job.generated)
            num_first = self.scheduler.kv_steps.num_tokens(job.num_prompt, num_known, job.num_kv_tokens)
            route = self.scheduler.assign(job.name, num_first, self.now, unwanted, limit=job.num_kv_tokens)
            if route is None:
                self.homeless.append((job, is_alone))
                continue
            session = SessionState(
                key=SessionKey(job.name, next(self._attempts)),
                order=job.order,
                route=route,
                prompt=prompt_of(job.num_prompt),
                sampling=SamplingSettings(),
                num_kv_tokens=job.num_kv_tokens,
                generated=list(job.generated),
                is_alone=is_alone,
                is_repeat=job.num_lost > 0,
                turn=job.turn,
                prefix_keys=prefix_keys(prompt_of(job.num_prompt), job.tenant) if self.shares_prefixes else (),
            )
            assert self.scheduler.add(session, self.now) is None

    def lost(self, lost: list[Lost]) -> None:
        for suspects in {each.suspects for each in lost if each.suspects and self.has_route_without(each.suspects)}:
            together = [each.session.key.session for each in lost if each.suspects == suspects]
            self.health.fail(suspects, together, "failed")
        for each in lost:
            job = self.jobs[each.session.key.session]
            assert not job.outcome
            assert each.session.key.session not in self.scheduler._sessions
            if each.session.prefix is None:  # whose source may have come again, and overtaken it
                assert each.failure.code not in OUT_OF_STEP, "a stage has another idea of a session than the scheduler"
            job.num_blamed += each.is_blamed
            job.num_lost += 1
            verdict = job.retries.after(
                each.failure,
                is_blamed=each.is_blamed,
                num_tokens=len(job.generated),
                suspects=each.suspects,
                has_other=self.has_route_without,
            )
            if isinstance(verdict, Failure):
                job.outcome, job.failure = "failed", verdict
                self.health.dismiss(job.name)
            else:
                self.homeless.append((job, verdict.is_alone))

    def _resume(self, preempted: list[Lost]) -> None:
        for each in preempted:
            job = self.jobs[each.session.key.session]
            assert each.is_preempted
            assert not job.outcome
            assert job.generated == each.session.generated
            self.resumed.append(job.name)
            self.homeless.append((job, each.session.is_alone))

    def has_route_without(self, keys: Collection[str]) -> bool:
        return any(not set(keys).intersection(route.key) for route in self.scheduler.routes.open_routes)

    # --- steps ---

    def plan(self) -> list[PlannedBatch]:
        self.house()
        planned = self.scheduler.plan(self.now)
        self._resume(self.scheduler.take_resumed())
        for microbatch in planned:
            self.admitted += [segment.session.key.session for segment in microbatch.segments if segment.opens]
        self.network += planned
        self.check()
        self.check_kept()
        return planned

    def deliver(
        self,
        microbatch: PlannedBatch,
        *,
        break_at: int | None = None,
        lose_at: int | None = None,
        spoil_at: int | None = None,
        num_spoilt: int = 1,
    ) -> Outcome:
        """Take an envelope through its stages.

        It fails as a whole at stage `break_at`, is gone in silence at `lose_at`, or loses its first `num_spoilt`
        sessions at `spoil_at`.
        """
        self.network.remove(microbatch)
        self._spoil = (spoil_at, num_spoilt)
        result = self._compute(microbatch, break_at, lose_at)
        if result is None:
            return Outcome()
        outcome = self.scheduler.complete(result, self.now)
        if outcome.microbatch is not None and not microbatch.segments and len(microbatch.route) == 1:
            key = microbatch.route.workers[0].key
            if key in self.suspended:
                self.suspended.discard(key)
                self.scheduler.join(microbatch.route.workers[0])
        for session in outcome.repeated:
            self.blamed += self.health.prove(session.key.session, session.route.key)
        for sampled in outcome.sampled:
            self._tokens(sampled)
        self.lost(outcome.lost)
        self.check()
        return outcome

    def _tokens(self, sampled: Sampled) -> None:
        job = self.jobs[sampled.session.key.session]
        assert not job.outcome
        for token in sampled.tokens:
            job.generated.append(token.token_id)
            assert token.position == job.num_prompt + len(job.generated) - 1
        assert job.generated == sampled.session.generated
        assert len(job.generated) <= job.max_tokens
        if len(job.generated) == job.max_tokens:
            job.outcome = "succeeded"
            self.scheduler.release(job.name, is_finished=True)

    def _compute(self, microbatch: PlannedBatch, break_at: int | None, lose_at: int | None) -> MicrobatchResult | None:
        alive = [segment.session.key for segment in microbatch.segments]
        failures: dict[SessionKey, tuple[PipelineError, str]] = {}
        poisoned = any(self.jobs[key.session].is_poison for key in alive)
        worker = microbatch.route.workers[0]
        for index, worker in enumerate(microbatch.route.workers):
            stage = self.stages.get(worker.key)
            if stage is None or index == lose_at:
                return None
            if (
                (worker.key in self.sick and alive)
                or index == break_at
                or (poisoned and index == len(microbatch.route) - 1)
            ):
                return self._result(microbatch, worker, failure=ComputeError("broken").to_failure())
            failed: dict[SessionKey, PipelineError] = {}
            if index == self._spoil[0]:
                failed = dict.fromkeys(alive[: self._spoil[1]], NonFiniteLogitsError("spoilt"))
                alive = [key for key in alive if key not in failed]
            failed |= stage.take(microbatch, alive)
            for key, error in failed.items():
                failures[key] = (error, worker.name)
            alive = [key for key in alive if key not in failed]
            if not alive and microbatch.segments:
                break
        tokens = tuple(
            SampledToken(
                session=key.session,
                attempt=key.attempt,
                position=position,
                token_id=token_id,
            )
            for segment in microbatch.segments
            if segment.wants_token and (key := segment.session.key) in alive
            for position, token_id in self.stages[worker.key].sample(segment)
        )
        left_out = tuple(
            SessionFailure(session=key.session, attempt=key.attempt, failure=error.to_failure(), worker=name)
            for key, (error, name) in failures.items()
        )
        return self._result(microbatch, worker, tokens=tokens, failures=left_out)

    def _result(self, microbatch: PlannedBatch, worker: StageInfo, **fields: object) -> MicrobatchResult:
        timings = tuple(
            StageTiming(worker=each.name, queue_s=0.0, compute_s=self.seconds_per_token * microbatch.num_tokens)
            for each in microbatch.route.workers
        )
        return MicrobatchResult(
            pipeline="main", fingerprint="", epoch=1, microbatch=microbatch.number, worker=worker.name,
            timings=timings, **fields,  # type: ignore[arg-type]
        )  # fmt: skip

    def expire(self) -> None:
        for microbatch in self.scheduler.batches.overtaken(self.now):
            self.lost(self.scheduler.fail_microbatch(microbatch.number, Failure("transport", "lost", retryable=True)))
        for microbatch in self.scheduler.batches.expired(self.now):
            for worker in microbatch.route.workers:
                self.suspend(worker.key)

    # --- what always holds ---

    def check(self) -> None:
        for key, stage in self.stages.items():
            used = self.scheduler.ledger.used_tokens(key)
            assert 0 <= used <= stage.worker.kv_capacity_tokens
            assert sum(stage.reserved.values()) <= used, "a stage holds what the ledger thinks is free"
            assert self.scheduler.ledger.kept_tokens(key) <= self.kept_share * stage.worker.kv_capacity_tokens

    def check_kept(self) -> None:
        """Whoever is first to get room has it coming before anything is kept for nobody. Holds after each plan."""
        ledger, waiting = self.scheduler.ledger, self.scheduler._waiting
        stalled = [session for lane in self.scheduler.routes.lanes for session in lane.stalled.values()]
        first = min(stalled, key=lambda each: each.order) if stalled else next(iter(waiting), None)
        if first is not None:
            more = waiting.num_tokens(first) - first.num_reserved_tokens
            for key in first.route.key:
                assert not ledger.kept_tokens(key) or ledger.coming_tokens(key) >= more, "what is kept is in the way"

    def drop_kept(self) -> None:
        """Have all room taken that is kept for nobody."""
        for key, stage in self.stages.items():
            self.scheduler.kept.make_room(key, stage.worker.kv_capacity_tokens)

    def run(self, max_steps: int = 5_000) -> None:
        """Let everything end without further faults."""
        for _ in range(max_steps):
            self.plan()
            is_quiet = not self.network and not self.suspended and len(self.scheduler.batches) == 0
            ledger = self.scheduler.ledger
            is_closed = all(  # refused ones come again
                not ledger.needed_tokens(key) and not ledger.has_pending_closes(key) for key in self.stages
            )
            if is_quiet and is_closed and all(job.outcome for job in self.jobs.values()):
                return
            if self.network:
                self.deliver(self.network[0])
            else:
                self.now += 1.0
                self.probe_all()
            self.expire()
        raise AssertionError(f"not ended: {[job for job in self.jobs.values() if not job.outcome]}")

    def check_ended(self) -> None:
        """Every job ended as it should, and nothing of any is left anywhere but what is kept, which goes as well."""
        for job in self.jobs.values():
            assert job.outcome != "failed" or job.num_blamed > 1, "once is no reason to fail"
            if job.outcome == "succeeded":
                right = [right_token(job.name, job.num_prompt + index) for index in range(job.max_tokens)]
                assert job.generated == right
        for key, stage in self.stages.items():
            assert stage.reserved.keys() == stage.kept, f"{key} still holds KV"
            assert sum(stage.reserved.values()) == self.scheduler.ledger.kept_tokens(key)
        self.drop_kept()
        self.run()
        for key, stage in self.stages.items():
            assert stage.reserved == {}
            assert self.scheduler.ledger.used_tokens(key) == 0
        assert len(self.scheduler.kept) == self.scheduler.kept.num_tokens == 0
        assert self.scheduler.num_running == self.scheduler.num_waiting == len(self.scheduler.batches) == 0
