"""Whether Redis is there, takes writes, keeps them, and never evicts; and what its clock says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.exceptions import NoPermissionError
from rich.filesize import decimal

from broker_pipeline.errors import StateError
from broker_pipeline.state.redis_client import RedisClient, check_takes_writes, public_url, state_errors
from broker_pipeline.tools.doctor.finding import Finding, denied, fail, ok, warn

T = TypeVar("T")

_LEAST_VERSION = (6, 2)
_MUCH, _TOO_MUCH = 0.8, 0.95
_SOME_S, _MUCH_S = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What a Redis says of itself."""

    url: str
    version: str = ""
    """Empty where we may not ask, and so is what follows."""
    has_file: bool = False
    """Whether it has an append-only file."""
    fsync: str = ""
    """When that is synced; empty where we may not ask."""
    policy: str = ""
    used_bytes: int = 0
    max_bytes: int = 0
    """0 for no limit."""
    not_written: str = ""
    """Why it took no write; empty where it did."""
    may_write: bool = True
    """Whether we may have it take one."""
    clock_ahead_s: float = 0.0
    """By how much this host's clock is ahead of its clock."""
    clock_error_s: float = 0.0
    """By how much that may be wrong."""


async def look_at_redis(redis: RedisClient, url: str, namespace: str) -> RedisFacts:
    """Ask a Redis that answers, as far as it lets us; raises `StateError` where it stops to."""
    info: dict[str, Any] = await _asked("INFO", redis.info) or {}
    settings = await _asked("CONFIG GET", lambda: redis.config_get("appendfsync")) or {}
    not_written = await _write_problem(redis, namespace)
    before, sent_at = time.monotonic(), time.time()
    with state_errors("TIME"):
        seconds, microseconds = await redis.time()
    round_trip_s = time.monotonic() - before
    return RedisFacts(
        url=public_url(url),
        version=str(info.get("redis_version", "")),
        has_file=bool(info.get("aof_enabled")),
        fsync=settings.get("appendfsync") or "",
        policy=str(info.get("maxmemory_policy", "")),
        used_bytes=int(info.get("used_memory", 0)),
        max_bytes=int(info.get("maxmemory", 0)),
        not_written=not_written or "",
        may_write=not_written is not None,
        clock_ahead_s=sent_at + round_trip_s / 2 - (seconds + microseconds / 1e6),
        clock_error_s=round_trip_s / 2,
    )


def judge_redis(facts: RedisFacts) -> list[Finding]:
    """Say what is wrong with a server that answers."""
    at = f"Redis {facts.version} at {facts.url}"
    first = ok("redis", f"{at} takes writes")
    if not facts.version:
        return [denied("redis", f"Redis at {facts.url} answers; its settings")]
    if tuple(map(int, facts.version.split(".")[:2])) < _LEAST_VERSION:
        first = fail("redis", f"{at} is too old", "take Redis 6.2 or newer, or Valkey")
    elif facts.not_written:
        first = fail("redis", f"{at}: {facts.not_written}", "name the master, make room on its disk and in its memory")
    elif not facts.may_write:
        first = denied("redis", f"{at} answers; whether it takes writes")
    return [first, _judge_file(facts), _judge_memory(facts)]


def judge_clock(facts: RedisFacts) -> Finding:
    """Compare this host's clock with that of Redis' host."""
    apart_s = abs(facts.clock_ahead_s)
    side = "ahead of" if facts.clock_ahead_s > 0 else "behind"
    said = f"{apart_s:.1f} s {side} Redis' host (± {facts.clock_error_s:.1f} s)"
    remedy = "have both hosts' clocks set by NTP (`timedatectl set-ntp true`, chrony)"
    if apart_s - facts.clock_error_s > _MUCH_S:
        return fail("clock", f"{said}: certificates, and times of jobs, are judged wrongly", remedy)
    if apart_s - facts.clock_error_s > _SOME_S:
        return warn("clock", said, remedy)
    return ok("clock", said)


def _judge_file(facts: RedisFacts) -> Finding:
    if not facts.has_file:
        return fail(
            "redis file", "no append-only file: a restart forgets every job", "appendonly yes, appendfsync always"
        )
    if not facts.fsync:
        return denied("redis file", "there is an append-only file; when it is synced")
    if facts.fsync != "always":
        said = f"appendfsync {facts.fsync}: a power cut takes up to two seconds of what clients were told"
        return warn("redis file", said, "appendfsync always")
    return ok("redis file", "an append-only file, synced before it answers")


def _judge_memory(facts: RedisFacts) -> Finding:
    share = facts.used_bytes / facts.max_bytes if facts.max_bytes else 0.0
    said = decimal(facts.used_bytes) + (f" of {decimal(facts.max_bytes)}" if facts.max_bytes else ", without a limit")
    if facts.policy != "noeviction":
        level = fail if facts.max_bytes else warn
        return level("redis memory", f"{facts.policy} evicts jobs in silence; {said}", "maxmemory-policy noeviction")
    if share > _MUCH:
        level = fail if share > _TOO_MUCH else warn
        return level("redis memory", f"{said} are used; full, it takes no jobs", "raise maxmemory")
    return ok("redis memory", f"{said}, never evicts")


async def _write_problem(redis: RedisClient, namespace: str) -> str | None:
    """Return why it took no write, empty where it did; None where it is not for us to write."""
    try:
        await check_takes_writes(redis, namespace)
    except StateError as error:
        return None if isinstance(error.__cause__, NoPermissionError) else error.message
    return ""


async def _asked(what: str, call: Callable[[], Awaitable[T]]) -> T | None:
    """Return an answer; None where Redis does not let us ask."""
    try:
        with state_errors(what):
            return await call()
    except StateError as error:
        if isinstance(error.__cause__, NoPermissionError):
            return None
        raise
