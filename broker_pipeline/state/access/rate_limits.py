"""What each key to the gateway has had, counted in Redis for all gateways together, by Redis's clock.

requests_per_minute, tokens_per_minute   token buckets: full at first, filling evenly, one script takes from both
max_parallel                             requests under way, each for a while unless it is said again
max_queued                               jobs of the tenant that wait, as its index has them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import RateLimitError
from broker_pipeline.messages.keys import KeyLimits
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.script_runner import ScriptRunner

HELD_S = 60
"""How long a request counts as under way whose gateway says nothing more of it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one request takes; `name` is that of a request which is under way until `release`."""

    requests: int = 0
    tokens: int = 0
    jobs: int = 0
    name: str | None = None
    yields: bool = False
    """Whether it is a line of a batch, which leaves room to requests for a while after one was refused."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left of a limit, and when it has all of it again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a request to take something: `refusal` is None where it was taken."""

    requests: Allowance | None
    tokens: Allowance | None
    refusal: RateLimitError | None


class RateLimits:
    """The counts of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        """Share the counts with every gateway of this Redis and namespace."""
        self._redis = redis
        self._namespace = namespace
        keys = {
            "bucket": redis_keys.limits(namespace, "@"),
            "parallel": redis_keys.limits_parallel(namespace, "@"),
            "tenant": redis_keys.tenant_jobs(namespace, "@"),
        }
        self._run = ScriptRunner(redis, "limits", [], {"keys": keys, "for_s": HELD_S})

    async def take(self, key_id: str, tenant: str, limits: KeyLimits, wanted: Wanted) -> Taken:
        """Take all that is wanted, or nothing where one limit has not enough left. Raises `StateError`."""
        given = {name: value for name, value in msgspec.structs.asdict(limits).items() if value is not None}
        args: dict[str, Any] = {"id": key_id, "tenant": tenant, "limits": given}
        args |= {name: value for name, value in asdict(wanted).items() if value is not None}
        refusing, wait_s, *shown = await self._run("take", args, "cannot count what a key asks for")
        return Taken(
            _allowance(limits.requests_per_minute, shown[0], shown[1]),
            _allowance(limits.tokens_per_minute, shown[2], shown[3]),
            _refusal(refusing.decode(), float(wait_s), limits) if refusing else None,
        )

    async def hold(self, key_id: str, names: Sequence[str]) -> None:
        """Say that requests are still under way. Raises `StateError`."""
        await self._run("hold", {"id": key_id, "names": list(names)}, "cannot count requests under way")

    async def release(self, key_id: str, names: Sequence[str]) -> None:
        """Say that requests have ended. Raises `StateError`."""
        with state_errors("cannot count requests under way"):
            await cast("Any", self._redis.zrem(redis_keys.limits_parallel(self._namespace, key_id), *names))


def _allowance(limit: int | None, remaining: int, reset_s: bytes) -> Allowance | None:
    return None if limit is None else Allowance(limit, max(remaining, 0), float(reset_s))


def _refusal(refusing: str, wait_s: float, limits: KeyLimits) -> RateLimitError:
    said = {
        "requests": f"{limits.requests_per_minute} requests a minute",
        "tokens": f"{limits.tokens_per_minute} tokens a minute",
        "parallel": f"{limits.max_parallel} requests at the same time",
        "queued": f"{limits.max_queued} jobs that wait",
    }[refusing]
    return RateLimitError(f"this key has {said}; try again in {wait_s:.3g} s", retry_after_s=wait_s)
