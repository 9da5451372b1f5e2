"""One fault after the other on a running pipeline, each once the one before is over.

calm: false alarms are counted ──► for each component and kind, in turn: all ready, streams move ──► fault ──► streams
                                   move again ──► undone, the target is back ──► …

The conductor that is hit is the one that conducts; of gateways, streams of the other are looked at.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import PipelineError
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.plan import LocalSettings, role_of
from broker_pipeline.tools.local.supervisor import SupervisedProgram
from trials.soak.faults.network import Network, why_no_network
from trials.soak.recovery.report import RecoveryReport, seconds_of
from trials.soak.recovery.stood_still import stood_still_s
from trials.soak.recovery.streams import Stream, StreamLoad
from trials.soak.system import components

KINDS: Mapping[str, tuple[str, ...]] = {
    "stage": ("kill", "stop", "partition"),
    "conductor": ("kill", "stop", "partition"),
    "vision": ("kill", "stop", "partition"),
    "nats": ("kill", "partition"),
    "redis": ("kill", "partition"),
    "gateway": ("kill",),
}
_SERVERS = frozenset({"nats", "redis"})
_AWAY_S = 3.5
"""Longer than it takes to notice."""
_NUM_CLIENTS = 12
_SETTLE_S = 0.5
"""After all is well again: so that the next fault meets running streams."""
_PATIENCE_S = 60.0
_ALARMS = frozenset({"worker_suspended", "tenure_begins", "conductor_gone"})
_BODY = msgspec.json.encode(
    {"prompt": "Tell me about a dog on the grass.", "sampling": {"max_tokens": 256, "ignore_eos": True}}
)


class RecoveryError(PipelineError):
    """Streams do not move again after a fault: there is something to be mended."""

    code = "not_recovered"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySettings:
    """How often each component is hit."""

    num_faults: int
    """For each component, over its kinds."""
    components: tuple[str, ...] = tuple(KINDS)
    calm_s: float = 30.0


class RecoveryDrill:
    """One drill. `say` is told, line by line, what happens."""

    def __init__(self, system: LocalSettings, settings: RecoverySettings, say: Callable[[str], None]) -> None:
        """Prepare a drill of a system in which everything has a spare; partitions are left out without root."""
        self._system = system
        self._settings = settings
        self._say = say
        self._can_cut = why_no_network() is None
        self._network: Network | None = None
        self._found: dict[str, list[list[float]]] = {}

    async def run(self) -> RecoveryReport:
        """Do all of it; raises `ServerStartError` when the pipeline could not be brought up."""
        began, load_average = time.monotonic(), os.getloadavg()[0]
        names = components(self._system)
        async with AsyncExitStack() as stack:
            places = {}
            if self._can_cut:
                self._network = await stack.enter_async_context(Network(names))
                places = {name: self._network.place(name) for name in names}
            system = replace(self._system, is_insecure=self._can_cut)  # its own hosts reach it, nobody else
            cluster = await stack.enter_async_context(LocalCluster(system, places=places))
            load = await stack.enter_async_context(StreamLoad.open(cluster.gateway_urls, _BODY, _NUM_CLIENTS))
            await self._moving(load)
            num_alarms = await self._stay_calm(cluster)
            for number in range(self._settings.num_faults):
                for role in self._settings.components:
                    await self._hit(cluster, load, role, number)
            problems = tuple(stream.problem for stream in load.streams if stream.problem)
        roles = {
            role: [each for name, found in self._found.items() if name.split()[0] == role for each in found]
            for role in self._settings.components
        }
        return RecoveryReport(
            seconds=round(time.monotonic() - began, 1),
            num_processors=os.cpu_count() or 1,
            load_average=round(load_average, 2),
            calm_s=self._settings.calm_s,
            num_false_alarms=num_alarms,
            components={role: seconds_of(found) for role, found in roles.items()},
            kinds={name: seconds_of(found) for name, found in self._found.items()},
            problems=problems,
        )

    async def _stay_calm(self, cluster: LocalCluster) -> int:
        self._say(f"{self._settings.calm_s:g} s under load without faults")
        before = _num_alarms(cluster)
        await asyncio.sleep(self._settings.calm_s)
        return _num_alarms(cluster) - before

    async def _hit(self, cluster: LocalCluster, load: StreamLoad, role: str, number: int) -> None:
        kinds = [kind for kind in KINDS[role] if kind != "partition" or self._can_cut]
        kind = kinds[number % len(kinds)]
        await cluster.until_ready(_PATIENCE_S)
        await self._moving(load)
        target = await _target(cluster, role, number)
        struck_url = cluster.gateway_urls[int(target.rpartition("-")[2])] if role == "gateway" else ""
        found = await self._fault(cluster.processes[target], target, kind, load, struck_url)
        self._found.setdefault(f"{role} {kind}", []).append(found)
        self._say(f"{kind} {target}: {len(found)} streams, the last moved after {max(found, default=0):.2f} s")

    async def _moving(self, load: StreamLoad) -> None:
        """Wait until all clients have tokens, and have had some for a while."""
        async with asyncio.timeout(_PATIENCE_S):
            await load.until_moving(load.open_at(time.monotonic()), time.monotonic())
            await asyncio.sleep(_SETTLE_S)

    async def _fault(
        self, program: SupervisedProgram, target: str, kind: str, load: StreamLoad, struck_url: str
    ) -> list[float]:
        """Do a fault and undo it; return how long each stream stood still, but for those of a gateway that is hit."""
        at, pid = time.monotonic(), program.process.pid
        streams = [stream for stream in load.open_at(at) if stream.gateway != struck_url]
        if kind == "kill":
            program.forgive()
            program.kill()
            while program.process.pid == pid and program.state == "ready":  # noqa: ASYNC110 - seen by another task
                await asyncio.sleep(0.01)
            if target in _SERVERS:
                await program.wait_ready(_PATIENCE_S)
        else:
            await self._keep_away(program, target, kind)
        back_at = time.monotonic() if target in _SERVERS else None
        struck = f"{kind} {target}"
        await _all_move(load, streams, back_at or at, struck)
        await asyncio.sleep(_SETTLE_S)
        until = time.monotonic()  # what was under way at the fault may have come, and the pause may last yet
        await _all_move(load, [stream for stream in streams if stream.ended_at is None], until, struck)
        return [stood_still_s(_signs(stream), at, until, back_at) for stream in streams]

    async def _keep_away(self, program: SupervisedProgram, target: str, kind: str) -> None:
        network = self._network
        if kind == "stop":
            program.kill(signal.SIGSTOP)
        elif network is not None:
            await network.cut(target)
        try:
            await asyncio.sleep(_AWAY_S)
        finally:
            if kind == "stop":
                program.kill(signal.SIGCONT)
            elif network is not None:
                await asyncio.shield(network.mend(target))


async def _all_move(load: StreamLoad, streams: Sequence[Stream], since: float, struck: str) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await load.until_moving(streams, since)
    except TimeoutError as error:
        stuck = [stream.job_id for stream in load.stuck(streams, since)]
        raise RecoveryError(f"{struck}: {stuck} stand still after {_PATIENCE_S:g} s") from error


def _signs(stream: Stream) -> list[float]:
    return [*stream.token_times, *([stream.ended_at] if stream.ended_at is not None else [])]


async def _target(cluster: LocalCluster, role: str, number: int) -> str:
    """Return the component to hit: the conductor that conducts, any other in turn."""
    names = [name for name in cluster.processes if role_of(name) == role]
    if role != "conductor":
        return names[number % len(names)]
    common = cluster.settings
    async with open_redis(cluster.redis_url) as redis:
        while True:
            holder = await redis.get(redis_keys.lease(common.namespace, common.pipeline))
            records = await WorkerRegistry(redis, common.namespace, common.pipeline).records()
            pids = {record.instance.encode(): record.pid for record in records if record.role == "conductor"}
            for name in names:
                if holder in pids and pids[holder] == cluster.processes[name].process.pid:
                    return name
            await asyncio.sleep(0.1)


def _num_alarms(cluster: LocalCluster) -> int:
    """Count what conductors have done about workers and each other, as their logs say."""
    paths = [each.log_path for name, each in cluster.processes.items() if role_of(name) == "conductor"]
    lines = [line for path in paths for line in path.read_text().splitlines() if line.startswith("{")]
    return sum(json.loads(line).get("event") in _ALARMS for line in lines)
