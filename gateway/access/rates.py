"""Holds callers to the limits of their keys, and says what is left of them as OpenAI does (`x-ratelimit-*`).

A request that submits work is counted before its body is read; one that makes a job is under way until its answer has
ended, and its tokens are counted once they are known. Keys without limits cost nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar

import structlog

from broker_pipeline.errors import InvalidRequestError, StateError
from broker_pipeline.messages.keys import KeyLimits
from broker_pipeline.state.access.rate_limits import HELD_S, Allowance, RateLimits, Taken, Wanted
from gateway.access.caller import Caller

_TAKEN: ContextVar[dict[str, Allowance]] = ContextVar("allowances")

log = structlog.get_logger()


class Rates:
    """What callers of one gateway process have under way."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._under_way: defaultdict[str, set[str]] = defaultdict(set)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep requests that last counted while the context is open."""
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(self._keep(), name="requests under way")
            try:
                yield
            finally:
                keeping.cancel()

    @asynccontextmanager
    async def admitted(self, caller: Caller, *, has_place: bool = True) -> AsyncIterator[None]:
        """Count a request, with `has_place` as under way while the context is open.

        Raises `RateLimitError` or `StateError`.
        """
        names = [secrets.token_hex(8)] if has_place else []
        await self.begin(caller, Wanted(requests=1, name=names[0] if names else None))
        try:
            yield
        finally:
            await self.end(caller, names)

    async def begin(self, caller: Caller, wanted: Wanted) -> None:
        """Count what has a name as under way until its `end`. Raises `RateLimitError` or `StateError`."""
        if caller.limits == KeyLimits():
            return
        await self._take(caller, wanted)
        if wanted.name and caller.limits.max_parallel is not None:
            self._under_way[caller.key_hash].add(wanted.name)

    async def end(self, caller: Caller, names: Sequence[str]) -> None:
        """Count these as under way no more."""
        if caller.limits.max_parallel is None or not names:
            return
        self.drop(caller, names)
        try:
            await asyncio.shield(self._limits.release(caller.key_hash, names))
        except StateError as error:
            log.info("request_not_released", reason=error.message, counts_for_s=HELD_S)

    def drop(self, caller: Caller, names: Iterable[str]) -> None:
        """Leave it to others to see to these, for as long as they count without it."""
        self._under_way[caller.key_hash].difference_update(names)
        if not self._under_way[caller.key_hash]:
            del self._under_way[caller.key_hash]

    async def charge(self, caller: Caller, num_tokens: int, *, num_jobs: int = 1, field: str | None = None) -> None:
        """Count tokens, and jobs that are about to wait.

        Raises `RateLimitError`, `StateError`, and `InvalidRequestError` naming `field` for more tokens than the key
        ever has.
        """
        most = caller.limits.tokens_per_minute
        if most is None and caller.limits.max_queued is None:
            return
        if most is not None and num_tokens > most:
            raise InvalidRequestError(
                f"this may take {num_tokens} tokens, and the key has {most} a minute: ask for fewer", field=field
            )
        await self._take(caller, Wanted(tokens=num_tokens, jobs=num_jobs))

    async def _take(self, caller: Caller, wanted: Wanted) -> None:
        taken = await self._limits.take(caller.key_hash, caller.tenant, caller.limits, wanted)
        _note(taken)
        if taken.refusal is not None:
            raise taken.refusal

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(HELD_S / 3)
            for key_hash, names in list(self._under_way.items()):
                try:
                    await self._limits.hold(key_hash, sorted(names))
                except StateError as error:
                    log.info("requests_not_held", reason=error.message)


def begin_request() -> None:
    """Forget what was noted of another request of this task."""
    _TAKEN.set({})


def rate_headers() -> dict[str, str]:
    """Return what the headers of an answer say of the limits that its request has met."""
    headers = {}
    for what, allowance in _TAKEN.get({}).items():
        headers[f"x-ratelimit-limit-{what}"] = str(allowance.limit)
        headers[f"x-ratelimit-remaining-{what}"] = str(allowance.remaining)
        headers[f"x-ratelimit-reset-{what}"] = f"{allowance.reset_s:g}s"
    return headers


def _note(taken: Taken) -> None:
    for what, allowance in (("requests", taken.requests), ("tokens", taken.tokens)):
        if allowance is not None:
            _TAKEN.get({})[what] = allowance
