"""Batches in Redis.

    create ──► validating ──begin──► in_progress ──advance──► finalizing ──finish──► completed
                   │                      │ collect: requests done, with the parts of files written of them
                   │                      ├──finish──► expired
                   └──finish──► failed    └──steer──► cancelling ──finish──► cancelled     (from any of these)

Whoever holds a batch's lease carries it on; each script that changes a run looks for that lease in the same step, so
that one who lost it changes nothing. Every method is one script or one read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import (
    BatchNotFoundError,
    BatchStateError,
    FileUnknownError,
    IdempotencyConflictError,
    LeaseLostError,
)
from broker_pipeline.state.lease import Lease
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.storage.file_chunks import Part
from gateway.access.caller import Caller
from gateway.batches.file_store import MONTH_S, encoded, new_id
from gateway.batches.records import Batch, LineError, Metadata
from gateway.batches.scripts import LEASES, as_fields, batch_scripts, page_of_ids, read_rows

Steering = Literal["cancel", "pause", "resume"]

_REPEAT_S = 300
"""A client that got no answer asks again without saying that it does so."""
_KEY_S = 24 * 3600
_KEEP_S = MONTH_S
_KEPT = ("endpoint", "input_file_id", "completion_window", "priority", "output_lives_s")
OFFSET_EVERY = 1000
"""Requests; where in the input each of these begins is known, for a run that is taken over."""


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """What somebody asks for."""

    caller: Caller
    input_file_id: str
    endpoint: str
    completion_window: str
    window_s: int
    metadata: Metadata | None = None
    priority: int = 0
    output_lives_s: int = MONTH_S
    idempotency_key: str | None = None

    @property
    def repeat_key(self) -> str:
        """Under what name a repeat of it is found: the client's key, or what makes it the same."""
        same = [self.caller.tenant, self.input_file_id, self.endpoint, sorted((self.metadata or {}).items())]
        named = [self.caller.tenant, self.idempotency_key] if self.idempotency_key else same
        return hashlib.sha256(msgspec.json.encode(named)).hexdigest()


@dataclass(frozen=True, slots=True)
class DueBatch:
    """A batch that nobody carries on."""

    id: str
    num_carried: int
    """Batches of its tenant that are carried on, or are due before it."""


class BatchStore:
    """The batches of one namespace. Everything raises `StateError` when Redis does not answer."""

    def __init__(
        self,
        redis: RedisClient,
        namespace: str,
        lease_s: float = 10.0,
        *,
        tells_ends: bool = False,
        retry_s: tuple[float, float] = (15.0, 3600.0),
    ) -> None:
        """Let others take a batch whose holder was silent for `lease_s` seconds.

        `tells_ends` says whether somebody is to be told of batches that end, `retry_s` how soon again if it fails.
        """
        self._redis = redis
        self._namespace = namespace
        self._lease_s = lease_s
        self._tells_ends = tells_ends
        self._retry_s = retry_s
        self._run = batch_scripts(redis, namespace)

    async def create(self, order: BatchOrder) -> Batch:
        """Record a batch, or return an earlier one of the same order.

        Raises `FileUnknownError`, or `IdempotencyConflictError` where the key belongs to another order.
        """
        now = int(time.time())
        fields = {name: getattr(order, name) for name in _KEPT} | {
            "created_at": now,
            "expires_at": now + order.window_s,
            "key_hash": order.caller.key_hash,
            "limits": msgspec.json.encode(order.caller.limits).decode(),
            "metadata": msgspec.json.encode(order.metadata).decode(),
            "output_file": new_id("file-"),
            "error_file": new_id("file-"),
        }
        args = {
            "batch_id": new_id("batch_"),
            "tenant": order.caller.tenant,
            "input_file_id": order.input_file_id,
            "fields": as_fields(fields),
            "repeat_key": redis_keys.batch_key(self._namespace, order.repeat_key),
            "repeat_s": _KEY_S if order.idempotency_key else _REPEAT_S,
            "finds_ended": order.idempotency_key is not None,
        }
        batch_id, is_new = await self._run("create_batch", args, "cannot create a batch")
        if not batch_id:
            raise FileUnknownError(f"no file {order.input_file_id}", field="input_file_id")
        batch = await self.get(batch_id.decode(), order.caller.tenant)
        if not is_new and not _is_same(batch, order):
            raise IdempotencyConflictError(f"this key belongs to {batch.id}, another batch", field="Idempotency-Key")
        return batch

    async def get(self, batch_id: str, tenant: str | None = None) -> Batch:
        """Return a batch, of this tenant if one is given. Raises `BatchNotFoundError`."""
        rows = await read_rows(self._redis, [redis_keys.batch(self._namespace, batch_id)], Batch, [batch_id])
        if not rows or tenant not in (None, rows[0].tenant):
            raise _not_found(batch_id)
        return rows[0]

    async def page(self, tenant: str, limit: int, after: str | None) -> tuple[list[Batch], bool]:
        """Return a page of batches, newest first, and whether there are more."""
        ids, has_more = await page_of_ids(self._run, "batches", tenant, limit, after=after, is_descending=True)
        keys = [redis_keys.batch(self._namespace, one) for one in ids]
        return await read_rows(self._redis, keys, Batch, ids), has_more

    async def steer(self, batch_id: str, tenant: str | None, action: Steering) -> Batch:
        """Cancel, pause or resume a batch, of this tenant if one is given.

        Raises `BatchNotFoundError` or `BatchStateError`.
        """
        owner = (await self.get(batch_id, tenant)).tenant
        args = {"batch_id": batch_id, "tenant": owner, "action": action}
        outcome = await self._run("steer", args, f"cannot {action} {batch_id}")
        if outcome == -1:
            raise _not_found(batch_id)
        batch = await self.get(batch_id, tenant)
        if outcome == 0:
            raise BatchStateError(f"cannot {action} a batch with status '{batch.status}'", field="batch_id")
        return batch

    async def due(self, limit: int, num_taken: int = 0) -> list[DueBatch]:
        """Return batches that nobody carries on, in turns over tenants; of one tenant the most urgent first.

        The caller carries `num_taken` of them on from now, which is their tenants' turn.
        """
        found = await self._run("due", {"limit": limit, "num_taken": num_taken}, "cannot look for batches")
        return [DueBatch(batch_id.decode(), int(num_carried)) for batch_id, num_carried in found]

    def lease(self, batch_id: str, instance: str) -> Lease:
        """Return the lease of a batch for somebody."""
        return Lease(self._redis, self._namespace, LEASES, instance, share=batch_id, ttl_s=self._lease_s)

    def held(self, batch_id: str, instance: str) -> HeldBatch:
        """Return the batch for the one who holds its lease."""
        shared = {"batch_id": batch_id, "instance": instance, "tells": self._tells_ends}
        return HeldBatch(self._redis, self._namespace, self._run, shared)

    async def take_untold(self) -> str | None:
        """Return a batch whose end is to be told now; unless it is set as told, it is due again after a while."""
        least_s, most_s = self._retry_s
        found = await self._run("take_untold", {"least_s": least_s, "most_s": most_s}, "cannot look for ended batches")
        return None if found is None else found.decode()

    async def set_told(self, batch_id: str) -> None:
        """Note that nobody has to be told of a batch's end any more."""
        with state_errors(f"cannot note that {batch_id} was told of"):
            await self._redis.zrem(redis_keys.batches_untold(self._namespace), batch_id)


class HeldBatch:
    """A batch in the hands of who holds its lease. Changes raise `LeaseLostError` once another has it."""

    def __init__(self, redis: RedisClient, namespace: str, run: Any, shared: dict[str, Any]) -> None:
        self.id = shared["batch_id"]
        self._redis = redis
        self._namespace = namespace
        self._scripts = run
        self._shared = shared

    async def begin(self, total: int, model: str | None, offsets: Sequence[int]) -> bool:
        """Let it run: its input is right and has so many requests. False when it was cancelled meanwhile."""
        fields = as_fields({"total": total, "model": model or ""})
        return await self._do("begin", offsets=list(map(str, offsets)), fields=fields)

    async def collect(
        self, requests: Sequence[int], output: Part | None, errors: Part | None, counts: Mapping[str, int]
    ) -> None:
        """Note requests as done, all or none, with what was written of them and by how much counts grow.

        Raises `LeaseLostError` when none was noted; a repeat is refused, too.
        """
        parts = {"output": [encoded(output)] if output else [], "errors": [encoded(errors)] if errors else []}
        if not await self._do("collect", requests=requests, counts=counts, **parts):
            raise LeaseLostError(f"{self.id} is another's, or has ended")

    async def advance(self, from_status: str, status: str) -> bool:
        """Move it on; False when it is elsewhere by now."""
        return await self._do("advance", **{"from": from_status, "status": status})

    async def finish(self, from_status: str, status: str, errors: Sequence[LineError] = ()) -> bool:
        """End it; False when it is elsewhere by now."""
        given = {"errors": msgspec.json.encode(errors).decode()} if errors else {}
        return await self._do("finish", **{"from": from_status, "status": status, "keep_s": _KEEP_S, **given})

    async def done(self) -> bytes:
        """Return a bit for each request, the first one highest; those beyond the end are 0."""
        with state_errors(f"cannot read {self.id}"):
            key = redis_keys.batch_done(self._namespace, self.id)
            done: bytes | None = await self._redis.get(key)  # type: ignore[assignment]
            return done or b""

    async def offset(self, request: int) -> tuple[int, int]:
        """Return a request not after this one and where in the input it begins."""
        index = request // OFFSET_EVERY
        with state_errors(f"cannot read {self.id}"):
            offset = await self._redis.lindex(redis_keys.batch_offsets(self._namespace, self.id), index)
            return (0, 0) if offset is None else (index * OFFSET_EVERY, int(offset))

    async def _do(self, script: str, **args: Any) -> bool:
        return bool(await self._scripts(script, {**self._shared, **args}, f"cannot go on with {self.id}"))


def _is_same(batch: Batch, order: BatchOrder) -> bool:
    metadata = msgspec.json.decode(batch.metadata)
    return (batch.input_file_id, batch.endpoint, metadata or {}) == (
        order.input_file_id,
        order.endpoint,
        order.metadata or {},
    )


def _not_found(batch_id: str) -> BatchNotFoundError:
    return BatchNotFoundError(f"no batch {batch_id}: it never was, or it ended long ago", field="batch_id")
