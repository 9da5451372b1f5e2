"""Pages of a sorted set of jobs, newest first, that new jobs do not disturb."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TypeAlias

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.state.redis_client import RedisClient

_MAX_PAGE = 1000
_Cursor: TypeAlias = tuple[float, str]
"""created_at and id of the last job of a page: equal times are ordered by id."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first. `next` is the `after` of the following page, `None` at the end."""

    records: list[JobRecord]
    next: str | None


async def page_of_ids(redis: RedisClient, key: str, after: str | None, limit: int) -> tuple[list[str], str | None]:
    """Return up to `limit` ids of the sorted set that come after the cursor `after`, and the next page's cursor.

    Raises `InvalidRequestError` for a limit or a cursor that is none, and what redis-py raises.
    """
    if not 1 <= limit <= _MAX_PAGE:
        raise InvalidRequestError(f"limit must be between 1 and {_MAX_PAGE}", field="limit")
    found = await _members_below(redis, key, None if after is None else _parse_cursor(after), limit + 1)
    shown = found[:limit]
    return [job_id for _, job_id in shown], _format_cursor(shown[-1]) if len(found) > limit else None


async def _members_below(redis: RedisClient, key: str, cursor: _Cursor | None, limit: int) -> list[_Cursor]:
    rows: list[tuple[bytes, float]]
    found: list[_Cursor] = []
    offset, top = 0, "+inf" if cursor is None else repr(cursor[0])
    while len(found) < limit:
        rows = await redis.zrevrangebyscore(key, top, "-inf", start=offset, num=limit, withscores=True)  # type: ignore[assignment]
        pairs = [(float(score), member.decode()) for member, score in rows]
        found += [pair for pair in pairs if cursor is None or pair < cursor]
        if len(rows) < limit:
            break
        offset += limit
    return found[:limit]


def _format_cursor(cursor: _Cursor) -> str:
    return f"{cursor[0]!r}_{cursor[1]}"


def _parse_cursor(text: str) -> _Cursor:
    created_at, _, job_id = text.partition("_")
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(created_at)):
            return seconds, job_id
    raise InvalidRequestError("this is not the `next` of an earlier page", field="after")
