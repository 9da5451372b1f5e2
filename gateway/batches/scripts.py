"""What runs the scripts about files and batches, and reads their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.script_runner import ScriptRunner

LEASES = "batches"
"""Leases of batches are kept as those of shares of a pipeline of this name."""

T = TypeVar("T", bound=msgspec.Struct)


def batch_scripts(redis: RedisClient, namespace: str) -> ScriptRunner:
    """Return what runs the scripts of one namespace."""
    keys = [
        redis_keys.files_expiry(namespace),
        redis_keys.files_doomed(namespace),
        redis_keys.batches_carried(namespace),
        redis_keys.batches_turns(namespace),
        redis_keys.batches_expiry(namespace),
        redis_keys.batches_untold(namespace),
        redis_keys.batches_active(namespace),
    ]
    templates = {
        "file": redis_keys.file(namespace, "@"),
        "parts": redis_keys.file_parts(namespace, "@"),
        "files": redis_keys.files(namespace, "@"),
        "batch": redis_keys.batch(namespace, "@"),
        "done": redis_keys.batch_done(namespace, "@"),
        "offsets": redis_keys.batch_offsets(namespace, "@"),
        "batches": redis_keys.batches(namespace, "@"),
        "waiting": redis_keys.batches_waiting(namespace, "@"),
        "lease": redis_keys.lease(namespace, LEASES, "@"),
    }
    return ScriptRunner(redis, "batches", keys, {"keys": templates}, dict.fromkeys(keys, "zset"))


async def page_of_ids(run: ScriptRunner, kind: str, tenant: str, limit: int, **where: Any) -> tuple[list[str], bool]:
    """Return up to `limit` ids of a tenant's files or batches, and whether there are more."""
    given = {name: value for name, value in where.items() if value is not None}
    found = await run("page", {"kind": kind, "tenant": tenant, "limit": limit, **given}, f"cannot list {kind}")
    if found is None:
        raise InvalidRequestError(f"none of the {kind} has this id", field="after")
    return [one.decode() for one in found[:limit]], len(found) > limit


async def read_rows(redis: RedisClient, keys: Sequence[str], row_type: type[T], ids: Sequence[str]) -> list[T]:
    """Return the rows of hashes, without those that are gone. Raises `StateError`."""
    with state_errors("cannot read files and batches"):
        async with redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hgetall(key)
            rows: list[dict[bytes, bytes]] = await pipeline.execute()
        return [
            msgspec.convert(
                {"id": one} | {name.decode(): value.decode() for name, value in row.items()}, row_type, strict=False
            )
            for one, row in zip(ids, rows, strict=True)
            if row
        ]


def as_fields(values: dict[str, Any]) -> list[str]:
    """Return a hash's fields as a script takes them: texts, name and value in turns."""
    return [text for name, value in values.items() for text in (name, str(value))]
