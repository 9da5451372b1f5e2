"""What may not be left when all jobs have ended: KV, sessions, queued jobs, media; and, after the stop, processes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from broker_pipeline import redis_keys, subjects
from broker_pipeline.errors import PipelineError
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport
from trials.soak.proof.proofs import Proof, proof_of_none

SETTLE_S = 60.0
_POLL_S = 0.25
_PR_SET_CHILD_SUBREAPER = 36

Look = Callable[[], Awaitable[list[str]]]


class Leftovers:
    """Looks at one namespace from outside, over connections of its own."""

    def __init__(self, transport: Transport, redis: RedisClient, namespace: str, pipeline: str) -> None:
        """Look at a pipeline in a namespace."""
        self._redis = redis
        self._namespace = namespace
        self._pipeline = pipeline
        self._transport = transport
        self._registry = WorkerRegistry(redis, namespace, pipeline)
        self._queue = JobQueue(transport, namespace)
        self._media = MediaStore(transport, redis, namespace)
        self._beats: dict[str, tuple[float, Heartbeat]] = {}

    async def listen(self) -> None:
        """Take in heartbeats until cancelled."""
        subject = subjects.heartbeats(self._namespace, self._pipeline)
        async with self._transport.subscribe(subject, Heartbeat) as beats:
            async for beat in beats:
                self._beats[beat.body.instance] = time.monotonic(), beat.body

    async def prove(self, num_stages: int, *, settle_s: float = SETTLE_S) -> list[Proof]:
        """Check every statement, each as soon as it holds and at the latest after `settle_s` seconds."""
        asked_at = time.monotonic()

        async def stages() -> list[str]:
            return await self._kv_left(num_stages, since=asked_at)

        statements: list[tuple[str, int, Look]] = [
            ("KV accounting is back to zero on every stage", num_stages, stages),
            ("the conductor has no session and no reservation", 1, self._conductor_left),
            ("the queue is empty", 1, self._queue_left),
            ("the media store is empty after a sweep", 1, self._media_left),
        ]
        deadline = asked_at + settle_s
        return [
            proof_of_none(statement, await _until_nothing(look, deadline), num_checked=num_checked)
            for statement, num_checked, look in statements
        ]

    async def _kv_left(self, num_stages: int, *, since: float) -> list[str]:
        """Look at a heartbeat of every registered stage that was sent after the last job's end."""
        records = [record for record in await self._registry.workers() if record.role == "stage"]
        found = [] if len(records) == num_stages else [f"{len(records)} of {num_stages} stages are registered"]
        for record in records:
            at, beat = self._beats.get(record.instance, (0.0, None))
            if beat is None or at < since:
                found.append(f"{record.worker} has sent no heartbeat since")
            elif beat.num_sessions or beat.kv_used_tokens:
                found.append(f"{record.worker} holds {beat.num_sessions} sessions, {beat.kv_used_tokens} tokens of KV")
        return found

    async def _conductor_left(self) -> list[str]:
        status = await self._registry.conductor_status()
        if status is None:
            return ["no conductor is active"]
        found = [f"{count} sessions are {what}" for what, count in status.num_sessions.items() if count]
        found += [f"{route.num_sessions} sessions on a route" for route in status.routes if route.num_sessions]
        found += [f"{s.kv_used_tokens} tokens reserved at {s.worker}" for s in status.stages if s.kv_used_tokens]
        return found

    async def _queue_left(self) -> list[str]:
        depth = await self._queue.depth()
        if depth.num_waiting or depth.num_in_progress:
            return [f"{depth.num_waiting} jobs wait, {depth.num_in_progress} are in progress"]
        return []

    async def _media_left(self) -> list[str]:
        """Sweep twice: what a gateway that died was uploading may go an hour later, and that hour passes in between."""
        await self._media.sweep(grace_s=0)
        with state_errors("cannot age what was never accepted"):
            for key_of in (redis_keys.media_acquired, redis_keys.media_kept, redis_keys.media_doomed):
                key = key_of(self._namespace)
                names: Any = await self._redis.zrange(key, 0, -1)
                if names:
                    await self._redis.zadd(key, dict.fromkeys(names, 0.0))
        await self._media.sweep(grace_s=0)
        size_bytes = await self._media.size_bytes()
        return [f"the media store holds {size_bytes} bytes"] if size_bytes else []


async def _until_nothing(look: Look, deadline: float) -> list[str]:
    """Look again and again until there is nothing, or the deadline has passed; return what there was at last."""
    while True:
        try:
            found = await look()
        except PipelineError as error:
            found = [error.message]
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_POLL_S)


def adopt_orphans() -> None:
    """Have processes whose parent dies become children of this one, so that none can hide."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def living_descendants(pid: int | None = None) -> list[str]:
    """Return every process that this one has started, directly or not, and that has not ended: pid and command line."""
    parents = {child: parent for child, parent, state in _processes() if state != "Z"}
    root = os.getpid() if pid is None else pid
    return [f"{child} {_command_line(child)}" for child in sorted(parents) if _descends(child, root, parents)]


def _descends(child: int, root: int, parents: dict[int, int]) -> bool:
    parent = parents.get(child)
    while parent is not None and parent != root:
        parent = parents.get(parent)
    return parent == root


def _processes() -> list[tuple[int, int, str]]:
    """Return pid, parent's pid and state of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = path.read_text()
        except OSError:  # it has just ended
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        found.append((int(path.parent.name), int(parent), state))
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(just ended)"
