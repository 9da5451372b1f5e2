"""Who is there: worker records in Redis with a time to live, and heartbeats on NATS.

A name belongs to one instance at a time. A worker that was killed and started again waits until the record of its
former self has run out; one whose name is in use by a live instance is refused as soon as that one is seen to renew.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import structlog

from broker_pipeline import redis_keys, subjects
from broker_pipeline.errors import GarbledStateError, StateError, TransportError, WorkerNameTakenError
from broker_pipeline.messages.base import CONTRACT_VERSION
from broker_pipeline.messages.merged_status import merged
from broker_pipeline.messages.status import ConductorStatus, RefusedWorker
from broker_pipeline.messages.workers import COMPUTING_ROLES, Heartbeat, Role, WorkerRecord
from broker_pipeline.state.name_claims import NameClaims
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.script_runner import ScriptRunner
from broker_pipeline.state.unreadable_rows import UnreadableRows

T = TypeVar("T")

DEFAULT_TTL_S = 5.0
DEFAULT_HEARTBEAT_S = 0.25
MAX_RECORD_BYTES = 16 * 1024
"""Longest record that is read; ours take about 1 KiB."""
_LIST_LIMITS = {"max_names": 4096, "max_of_host": 64, "max_bytes": MAX_RECORD_BYTES}
"""What is read at once, of whatever hosts have put there."""


class _FewFacts(msgspec.Struct, frozen=True):
    """What every version's record says in the same words."""

    instance: Annotated[str, msgspec.Meta(max_length=64)] = ""
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    contract: int = CONTRACT_VERSION


_REGISTER_POLL_S = 0.25
_KEYS = {b"worker": redis_keys.worker, b"conductor": redis_keys.conductor}
"""Keys of records. Those of conductors are apart, so that a host of workers cannot have any."""
_encode = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(WorkerRecord).decode
_decode_few_facts = msgspec.json.Decoder(_FewFacts).decode
_decode_status = msgspec.json.Decoder(ConductorStatus).decode

log = structlog.get_logger()


class HeartbeatPublisher(Protocol):
    """The part of `transport.Transport` that heartbeats need."""

    async def publish(self, subject: str, body: msgspec.Struct) -> None:
        """Send `body` to `subject`."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the registry holds at one moment."""

    records: list[WorkerRecord]
    unreadable: list[RefusedWorker]
    """Of each of the others, why nobody can use it."""


class WorkerRegistry:
    """The workers of one pipeline."""

    def __init__(self, redis: RedisClient, namespace: str, pipeline: str, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        """Let a record that nobody renews be gone after `ttl_s` seconds."""
        self._redis = redis
        self._namespace = namespace
        self._pipeline = pipeline
        self._ttl_s = ttl_s
        keys = [redis_keys.workers(namespace, pipeline), redis_keys.pipelines(namespace)]
        templates = {kind.decode(): key(namespace, pipeline, "@") for kind, key in _KEYS.items()}
        shared = {"keys": templates, **_LIST_LIMITS}
        self._claims = NameClaims(redis, (keys[0], keys[1]), pipeline)
        self._run = ScriptRunner(redis, "workers", keys, shared, dict.fromkeys(keys, "set"))
        self._unreadable = UnreadableRows("conductor_status_unreadable")
        self._rows: dict[tuple[bytes, bytes, bytes, int], WorkerRecord | RefusedWorker] = {}
        """What was read the last time: nearly all is the same the next time."""

    async def register(self, record: WorkerRecord) -> None:
        """Take the record's name, waiting up to the time to live for that of a dead instance to run out.

        Raises `WorkerNameTakenError` when a live instance has the name.
        """
        deadline = time.monotonic() + 2 * self._ttl_s
        last_left_s = float("inf")
        while (holder := await self._try_register(record)) is not None:
            held, left_s = holder
            if left_s > last_left_s or time.monotonic() > deadline:
                raise _name_taken(record, held)
            last_left_s = left_s
            await asyncio.sleep(min(max(left_s, 0.0) + 0.01, _REGISTER_POLL_S))

    async def renew(self, record: WorkerRecord) -> None:
        """Write the record again for another time to live; raises `WorkerNameTakenError` when another has the name."""
        if (holder := await self._try_register(record)) is not None:
            raise _name_taken(record, holder[0])

    async def release(self, record: WorkerRecord) -> None:
        """Give the name back at once; nothing happens when another instance has it."""
        await self._mending(record, lambda: self._claims.give_back(self._key(record), record.worker, record.instance))

    async def workers(self) -> list[WorkerRecord]:
        """Return the records of live stages and vision workers that can be read, sorted by name."""
        return [record for record in await self.records() if record.role in COMPUTING_ROLES]

    async def records(self) -> list[WorkerRecord]:
        """Return the records of all that live, conductors as well, that can be read, sorted by name."""
        return (await self.registered()).records

    async def registered(self) -> Registered:
        """Return the records of all that live, sorted by name, and what stands in the place of others."""
        rows: list[tuple[bytes, bytes, bytes, int]] = await self._run("list", {}, "cannot list workers")
        known, self._rows = self._rows, {}
        for kind, name, row, size in sorted(rows):
            place = kind, name, row, size
            self._rows[place] = known.get(place) or self._read(*place)
        read = self._rows.values()
        return Registered(
            records=[row for row in read if isinstance(row, WorkerRecord)],
            unreadable=[row for row in read if isinstance(row, RefusedWorker)],
        )

    async def conductor_status(self) -> ConductorStatus | None:
        """Return what the conductors of all shares show, merged; None when none shows what can be read here."""
        shares = sorted({""} | {record.share for record in await self.workers()})
        keys = [redis_keys.status(self._namespace, self._pipeline, share) for share in shares]
        with state_errors("cannot read the conductor's status"):
            texts = await self._redis.mget(keys)  # nothing where there is no string
        return merged([status for key, text in zip(keys, texts, strict=True) if (status := self._status(key, text))])

    def _status(self, key: str, text: bytes | str | None) -> ConductorStatus | None:
        try:
            with state_errors("cannot read a conductor's status"):
                return None if text is None else _decode_status(text)
        except GarbledStateError as error:
            self._unreadable.note(key, error.message)
            return None

    async def announce(
        self,
        record_source: Callable[[], WorkerRecord],
        heartbeat_source: Callable[[], Heartbeat],
        transport: HeartbeatPublisher,
        *,
        heartbeat_s: float = DEFAULT_HEARTBEAT_S,
    ) -> None:
        """Renew the record and publish heartbeats until cancelled. The record must have been registered.

        An outage of Redis or NATS is logged and outlived. Raises `WorkerNameTakenError` when, after such an outage,
        another instance has taken the name.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_renewing(record_source))
            subject = subjects.heartbeat(record_source().subject)
            tasks.create_task(self._keep_beating(subject, heartbeat_source, transport, heartbeat_s))

    async def _keep_renewing(self, record_source: Callable[[], WorkerRecord]) -> None:
        outage = _Outage("registry_unreachable", "registry_reachable")
        while True:
            try:
                await self.renew(record_source())
            except WorkerNameTakenError:
                raise
            except StateError as error:
                outage.begin(error)
            else:
                outage.end()
            await asyncio.sleep(self._ttl_s / 5)

    async def _keep_beating(
        self, subject: str, heartbeat_source: Callable[[], Heartbeat], transport: HeartbeatPublisher, heartbeat_s: float
    ) -> None:
        outage = _Outage("heartbeats_interrupted", "heartbeats_resumed")
        while True:
            try:
                await transport.publish(subject, heartbeat_source())
            except TransportError as error:
                outage.begin(error)
            else:
                outage.end()
            await asyncio.sleep(heartbeat_s)

    async def _try_register(self, record: WorkerRecord) -> tuple[WorkerRecord | RefusedWorker, float] | None:
        """Write the record; where another instance has the name, return its record and its remaining seconds."""
        take = partial(
            self._claims.take,
            self._key(record),
            record.worker,
            record.instance,
            _encode(record),
            int(self._ttl_s * 1000),
        )
        held = await self._mending(record, take)
        if held is None:
            return None
        size = len(held.record)
        row = held.record if size <= MAX_RECORD_BYTES else b""
        return self._read(_kind(record.role), record.worker.encode(), row, size), held.left_ms / 1000

    def _key(self, record: WorkerRecord) -> str:
        return _KEYS[_kind(record.role)](self._namespace, self._pipeline, record.worker)

    def _read(self, kind: bytes, name: bytes, row: bytes, size: int) -> WorkerRecord | RefusedWorker:
        """Read what stands where a record should; where that is none of this key, say what it is."""
        try:
            record = _decode_record(row)
            reason = self._objection(kind, name, record)
            if not reason:
                return record
        except (msgspec.MsgspecError, ValueError) as error:
            reason = f"its record cannot be read ({error})"
        if size > MAX_RECORD_BYTES:
            reason = f"its record has {size:,} bytes, of which {MAX_RECORD_BYTES:,} are read"
        facts = _FewFacts()
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            facts = _decode_few_facts(row)
        if facts.contract != CONTRACT_VERSION:
            version = facts.version or "its version"
            reason = f"{version} speaks contract {facts.contract}, this pipeline {CONTRACT_VERSION}"
        return RefusedWorker(worker=name.decode(errors="backslashreplace"), instance=facts.instance, reason=reason)

    def _objection(self, kind: bytes, name: bytes, record: WorkerRecord) -> str:
        """Say what a record says that is not its own: servers see to its key, and nobody to what is in it."""
        if record.worker.encode() != name:
            return f"its record is of {record.worker}"
        root = subjects.worker_root(self._namespace, self._pipeline, record.role, record.worker, record.instance)
        if record.subject != root or record.pipeline != self._pipeline or _kind(record.role) != kind:
            return f"its record is of a {record.role} of {record.pipeline} at {record.subject}, which is not its own"
        return ""

    async def _mending(self, record: WorkerRecord, change: Callable[[], Awaitable[T]]) -> T:
        """Change a record; where an index is none, a conductor sees to that, which workers may not."""
        return await (change() if record.role in COMPUTING_ROLES else self._run.mending(change))


async def pipelines(redis: RedisClient, namespace: str) -> list[str]:
    """Return the names of all pipelines that have, or had, workers."""
    with state_errors("cannot list pipelines"):
        names: Any = await redis.srandmember(redis_keys.pipelines(namespace), _LIST_LIMITS["max_names"])
    return sorted(name.decode() for name in names if name.isascii())


class _Outage:
    """Logs the begin and the end of an outage, not every failure in between."""

    def __init__(self, begin_event: str, end_event: str) -> None:
        self._events = begin_event, end_event
        self._since: float | None = None

    def begin(self, error: StateError | TransportError) -> None:
        if self._since is None:
            self._since = time.monotonic()
            log.warning(self._events[0], code=error.code, message=error.message)

    def end(self) -> None:
        if self._since is not None:
            log.info(self._events[1], outage_s=round(time.monotonic() - self._since, 3))
            self._since = None


def _kind(role: Role) -> bytes:
    return b"worker" if role in COMPUTING_ROLES else b"conductor"


def _name_taken(record: WorkerRecord, held: WorkerRecord | RefusedWorker) -> WorkerNameTakenError:
    who = "worker of another version"
    if isinstance(held, WorkerRecord):
        who = f"{held.role} on {held.host or 'another host'} (pid {held.pid}, instance {held.instance})"
    return WorkerNameTakenError(
        f"the name {record.worker} belongs to a live {who}: give this one another --name, or stop that one",
        field="name",
    )
