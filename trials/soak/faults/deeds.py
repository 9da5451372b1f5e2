"""What is done for each kind of fault, and how it is undone: a context that lasts as long as the fault.

kill        SIGKILL; the supervisor starts it again
restart     SIGTERM, and started again when it has ended
stop        SIGSTOP … SIGCONT           the process hangs and later goes on as if nothing had been
slow        SIGSTOP and SIGCONT in alternation: it has a tenth of its speed
partition   veth down … veth up         the process lives, and nobody hears it
sick        every computation of a worker fails, and it lives
clock       the wall clock is hours off, forward or backward
shm         /dev/shm is full, and a stage has to start again meanwhile
consumer, stream     somebody deletes what jobs are queued in
garbled, strange     somebody writes garbage, or records of workers that nobody can use, into Redis
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from trials.soak.faults import clocks, held_by_servers, shared_memory, sickness
from trials.soak.faults.plan import Fault, FaultKind
from trials.soak.faults.scene import Scene, clock_path, sickness_path

_TURN_S = 0.2
_SPEED = 0.1
_HOURS_OFF_S = 6 * 3600

Deed = Callable[[Scene, Fault], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _killed(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    program = scene.cluster.processes[fault.target]
    pid = program.process.pid
    program.kill()
    yield
    # until the supervisor has seen the death: `wait_ready` would be satisfied before
    while program.process.pid == pid and program.state == "ready":  # noqa: ASYNC110 - seen by another task
        await asyncio.sleep(0.02)


@asynccontextmanager
async def _restarted(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    yield
    await scene.cluster.processes[fault.target].restart()


@asynccontextmanager
async def _stopped(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    program = scene.cluster.processes[fault.target]
    program.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        program.kill(signal.SIGCONT)


@asynccontextmanager
async def _slow(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    taking_turns = asyncio.create_task(_take_turns(scene, fault))
    try:
        yield
    finally:
        taking_turns.cancel()
        await asyncio.wait({taking_turns})


async def _take_turns(scene: Scene, fault: Fault) -> None:
    while True:
        async with _stopped(scene, fault):
            await asyncio.sleep((1 - _SPEED) * _TURN_S)
        await asyncio.sleep(_SPEED * _TURN_S)


@asynccontextmanager
async def _cut_off(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    assert scene.network is not None, "partition faults need a network"
    await scene.network.cut(fault.target)
    try:
        yield
    finally:
        await asyncio.shield(scene.network.mend(fault.target))


@asynccontextmanager
async def _sick(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    path = sickness_path(scene.directory, fault.target)
    sickness.sicken(path, "fail")
    try:
        yield
    finally:
        sickness.heal(path)


@asynccontextmanager
async def _wrong_clock(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    path = clock_path(scene.directory, fault.target)
    clocks.set_clock(path, _HOURS_OFF_S if fault.detail < 0.5 else -_HOURS_OFF_S)
    try:
        yield
    finally:
        clocks.set_clock(path, 0)


@asynccontextmanager
async def _without_shared_memory(scene: Scene, fault: Fault) -> AsyncIterator[None]:
    shared_memory.fill()
    try:
        async with _killed(scene, fault):
            yield
    finally:
        shared_memory.empty()


def _done_by_others(do: Callable[[Scene, Fault], Awaitable[None]]) -> Deed:
    """Return what somebody does and nobody undoes."""

    @asynccontextmanager
    async def deed(scene: Scene, fault: Fault) -> AsyncIterator[None]:
        await do(scene, fault)
        yield

    return deed


DEEDS: Mapping[FaultKind, Deed] = {
    "kill": _killed,
    "restart": _restarted,
    "stop": _stopped,
    "slow": _slow,
    "partition": _cut_off,
    "sick": _sick,
    "clock": _wrong_clock,
    "shm": _without_shared_memory,
    "consumer": _done_by_others(lambda scene, _: held_by_servers.delete_consumer(scene.cluster)),
    "stream": _done_by_others(lambda scene, _: held_by_servers.delete_stream(scene.cluster)),
    "garbled": _done_by_others(lambda scene, fault: held_by_servers.garble(scene.cluster, fault.detail)),
    "strange": _done_by_others(lambda scene, _: held_by_servers.register_strangers(scene.cluster)),
}
