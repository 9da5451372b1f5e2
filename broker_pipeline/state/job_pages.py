"""Pages of a sorted set of jobs, newest first, that new jobs do not disturb."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.exceptions import RedisError

from broker_pipeline import redis_keys
from broker_pipeline.errors import GarbledStateError, InvalidRequestError
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.state.job_records import RECORD_FIELDS, is_known, job_record
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.unreadable_rows import UnreadableRows

_MAX_PAGE = 1000
_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_Cursor: TypeAlias = tuple[float, str]
"""created_at and id of the last job of a page: equal times are ordered by id."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first. `next` is the `after` of the following page, `None` at the end."""

    records: list[JobRecord]
    next: str | None
    num_unreadable: int = 0
    """Jobs of this page that are left out: Redis holds something strange in their place."""


async def page_of_records(
    redis: RedisClient, namespace: str, key: str, after: str | None, limit: int, unreadable: UnreadableRows
) -> JobPage:
    """Return up to `limit` jobs of the sorted set `key` that come after the cursor `after`.

    Those that cannot be read are left out, counted, and noted in `unreadable`. Raises `InvalidRequestError` for a limit
    or a cursor that is none, and `StateError`.
    """
    if not 1 <= limit <= _MAX_PAGE:
        raise InvalidRequestError(f"limit must be between 1 and {_MAX_PAGE}", field="limit")
    cursor = None if after is None else _parse_cursor(after)
    with state_errors("cannot list jobs"):
        found, num_unreadable = await _members_below(redis, key, cursor, limit + 1)
        job_ids = [job_id for _, job_id in found[:limit]]
        rows = await job_fields(redis, namespace, job_ids, RECORD_FIELDS)
    records = []
    for job_id, row in zip(job_ids, rows, strict=True):
        try:
            records += _shown(job_id, row)
        except GarbledStateError as error:
            unreadable.note(job_id, error.message)
            num_unreadable += 1
    return JobPage(records, _format_cursor(found[limit - 1]) if len(found) > limit else None, num_unreadable)


async def job_fields(redis: RedisClient, namespace: str, job_ids: Sequence[str], fields: Sequence[str]) -> list[Any]:
    """Return fields of jobs, or for each the error that stands in their place; raises what redis-py raises."""
    async with redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hmget(redis_keys.job(namespace, job_id), fields)
        return list(await pipeline.execute(raise_on_error=False))


def _shown(job_id: str, row: Sequence[bytes | None] | RedisError) -> list[JobRecord]:
    """Return a job's record, or nothing where there is none (any more)."""
    with state_errors(f"cannot read job {job_id}"):
        if isinstance(row, RedisError):
            raise row
    return [job_record(job_id, row)] if is_known(row[0]) else []


async def _members_below(redis: RedisClient, key: str, cursor: _Cursor | None, limit: int) -> tuple[list[_Cursor], int]:
    rows: list[tuple[bytes, float]]
    found: list[_Cursor] = []
    num_strange = 0
    offset, top = 0, "+inf" if cursor is None else repr(cursor[0])
    while len(found) < limit:
        rows = await redis.zrevrangebyscore(key, top, "-inf", start=offset, num=limit, withscores=True)  # type: ignore[assignment]
        pairs = [
            (float(score), member.decode()) for member, score in rows if _ID.fullmatch(member) and math.isfinite(score)
        ]
        num_strange += len(rows) - len(pairs)
        found += [pair for pair in pairs if cursor is None or pair < cursor]
        if len(rows) < limit:
            break
        offset += limit
    return found[:limit], num_strange


def cursor_of(record: JobRecord) -> str:
    """Return the `after` of a page that begins behind a job."""
    return _format_cursor((record.created_at, record.job_id))


def _format_cursor(cursor: _Cursor) -> str:
    return f"{cursor[0]!r}_{cursor[1]}"


def _parse_cursor(text: str) -> _Cursor:
    created_at, _, job_id = text.partition("_")
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(created_at)):
            return seconds, job_id
    raise InvalidRequestError("this is not the `next` of an earlier page", field="after")
