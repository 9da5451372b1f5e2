"""Runs a schedule and holds its end against what has to be true of every one.

every job has ended, once: succeeded with the right tokens, or failed where it is poison
no job has paid for faults of others
nothing is left: in the queue, on the stages, in the conductor's books; but for beginnings, of which both know
no conductor has ended by itself
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.messages.jobs import JobRecord, TokenEntry
from broker_pipeline.messages.status import ConductorStatus, StageStatus
from broker_pipeline.state.job_store import JobStore
from tests.kit.acting.workers import right_token
from tests.simulation.fake_redis.server import FakeRedisClient
from tests.simulation.havoc import Havoc
from tests.simulation.processes import Process
from tests.simulation.schedule import Job, Schedule, draw
from tests.simulation.virtual_loop import StandstillError, VirtualLoop
from tests.simulation.world import NAMESPACE, World

PATIENCE_S = 30.0
"""How long after the last fault everything has to be over: in 400 schedules it took 1 s, 7 s in four, 9 s at most."""
_LOOK_S = 0.05
_BOOKS_S = 20.0
"""How long it may take then until a conductor shows empty books: a command to Redis may have to time out."""
_ASKS_REDIS = 8
"""In one schedule of so many, books are read where the conductor shows them, once a second; else where it has them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    schedule: Schedule
    problems: tuple[str, ...]
    took_s: float
    """Simulated."""
    num_callbacks: int
    digest: int
    """What chance would have said next: it was asked as often, for the same."""

    @property
    def history(self) -> tuple[object, ...]:
        """What is equal for equal histories, and hardly for others."""
        return self.took_s, self.num_callbacks, self.digest, list(self.problems)

    def __str__(self) -> str:
        lines = [f"seed {self.schedule.seed}: {self.schedule}", *map(str, self.schedule.faults), *self.problems]
        return "\n".join([*lines, f"replay: python -m tests.simulation --seed {self.schedule.seed} --log"])


def simulate(seed: int, schedule: Schedule | None = None) -> Verdict:
    """Run the schedule of a seed to its end, or another one with its chance."""
    schedule, chance = schedule or draw(seed), random.Random(seed)
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    world = World(loop, chance)
    try:
        problems = loop.run_until_complete(_run(world, schedule))
    except StandstillError as error:
        problems = [str(error)]
    except Exception as error:  # noqa: BLE001 - a callback failed, which asyncio would only log
        problems = [f"a callback failed: {error!r}"]
    took_s, num_callbacks, digest = loop.time(), loop.num_callbacks, chance.getrandbits(32)
    _end(world)
    return Verdict(schedule, tuple(problems), took_s, num_callbacks, digest)


def _end(world: World) -> None:
    loop = world.loop
    loop.grant()
    for kill in [process.kill for process in world.processes.values()]:
        loop.call_soon(kill)
    while tasks := [task for task in loop.tasks if not task.done()]:
        for task in tasks:
            loop.call_soon(task.cancel)
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.tasks.clear()
    asyncio.set_event_loop(None)
    loop.close()


async def _run(world: World, schedule: Schedule) -> list[str]:
    _start(world, schedule)
    await asyncio.sleep(schedule.quiet_from_s)
    while not world.is_quiet():
        await asyncio.sleep(_LOOK_S)
        if world.loop.time() > schedule.quiet_from_s + PATIENCE_S:
            return [*_unfinished(world), *_crashes(world)]
    asks_redis = schedule.seed % _ASKS_REDIS == 0
    return [*await _wrong_ends(world, schedule), *await _leftovers(world, asks_redis=asks_redis), *_crashes(world)]


def _start(world: World, schedule: Schedule) -> None:
    havoc = Havoc(world)
    world.redis.loses_second = schedule.loses_second
    for name, role in schedule.roles.items():
        if role not in ("nats", "redis"):
            world.start(name, role, schedule)
    for number, job in enumerate(schedule.jobs):
        world.loop.call_at(job.at_s, world.submit, f"job-{number}", job)
        if job.cancelled_at_s is not None:
            world.loop.call_at(job.cancelled_at_s, world.cancel, f"job-{number}")
    for fault in schedule.faults:
        havoc.expect(fault)


# --- what has to be true --------------------------------------------------------------------------------------------


def _unfinished(world: World) -> list[str]:
    jobs = {job_id: world.status(job_id) for job_id in world.specs}
    kv = {name: worker.reserved for name, worker in world.stages.items() if worker.reserved}
    return [f"not over after {PATIENCE_S:g} s: jobs {jobs}, {len(world.broker.stream)} in the queue, KV {kv}"]


def _crashes(world: World) -> list[str]:
    return [f"{name} has ended by itself: {error!r}" for name, error in world.crashes]


async def _wrong_ends(world: World, schedule: Schedule) -> list[str]:
    store = JobStore(FakeRedisClient(world.redis, Process("judge")), NAMESPACE)  # type: ignore[arg-type]
    problems = []
    for number, job in enumerate(schedule.jobs):
        if f"job-{number}" in world.forgotten - world.ended:
            continue  # nothing brings it to an end any more: docs/operations.md, settings of the servers
        record, tokens = await store.get_with_tokens(f"job-{number}", 0)
        if problem := _wrong_end(job, record, tokens, may_fail=schedule.may_fail):
            problems.append(f"{record.job_id} {problem}")
    return problems


def _wrong_end(job: Job, record: JobRecord, tokens: list[TokenEntry], *, may_fail: bool) -> str | None:
    if record.status == "cancelled" and job.cancelled_at_s is not None:
        return None
    if job.is_poison or (may_fail and record.status == "failed"):
        return None if record.status == "failed" else f"is poison and has {record.status}"
    if record.status != "succeeded" or record.result is None:
        return f"has {record.status} after {record.attempt} attempts: {record.error}"
    right = [right_token(record.job_id, job.num_prompt + index) for index in range(job.max_tokens)]
    if [entry.token_id for entry in tokens] != right:
        return f"has tokens {[entry.token_id for entry in tokens]}, not {right}"
    if record.result.text != "".join(entry.text for entry in tokens):
        return f"says {record.result.text!r}"
    return None


async def _leftovers(world: World, *, asks_redis: bool) -> list[str]:
    """Return what conductors have left in the books of any share; what they show of them from now on, on request."""
    if asks_redis:
        world.redis.data.call("DEL", *map(_shown_at, world.shares))
    until = world.loop.time() + _BOOKS_S
    while (problems := _in_books(world, asks_redis=asks_redis)) and world.loop.time() < until:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    return problems


def _in_books(world: World, *, asks_redis: bool) -> list[str]:
    problems = []
    for share in sorted(world.shares):
        shown = world.redis.data.call("GET", _shown_at(share))
        books = world.books(share)
        if shown is None:
            problems.append(f"no conductor shows itself in {_shown_at(share)}")
            continue
        if asks_redis or not books:  # of two of one name, the one that was replaced may hold it
            books = [msgspec.json.decode(shown, type=ConductorStatus)]
        problems += [problem for status in books if (problem := _in_book(world, share, status))]
    return problems


def _shown_at(share: str) -> str:
    return redis_keys.status(NAMESPACE, "main", share)


def _in_book(world: World, share: str, status: ConductorStatus) -> str | None:
    if problem := next((each for stage in status.stages if (each := _wrongly_kept(world, stage))), None):
        return problem
    kv = {stage.worker: stage.kv_used_tokens for stage in status.stages if stage.kv_used_tokens}
    if not kv and not any(status.num_sessions.values()) and not status.num_uncommitted_tokens:
        return None
    return (
        f"in the books of {share!r}: KV {kv}, {status.num_sessions}, {status.num_uncommitted_tokens} tokens uncommitted"
    )


def _wrongly_kept(world: World, shown: StageStatus) -> str | None:
    """Return what a stage keeps of sessions that have ended, where that is not what its conductor has it keep."""
    kept = world.stages[shown.worker].kept
    if shown.kv_kept_tokens == sum(kept.values()) <= shown.kv_capacity_tokens / 2:
        return None
    return f"{shown.worker} keeps {kept}, and its conductor has it keep {shown.kv_kept_tokens} tokens"
