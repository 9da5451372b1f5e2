"""One conductor for each share: a lease in Redis with a time to live, and an epoch that fences its predecessors.

    acquire() ──► epoch ──► hold(): renews every 0.25 s ──► release()
                                │
                                └── not renewed within the time to live: LeaseLostError, before Redis lets another in

The holder counts the time to live from *before* it sent the renewal, on its monotonic clock, so it stops no later than
Redis does. What it had sent by then is fenced: at stages by its epoch, in Redis by its `Fence` where it begins an
attempt, and by the attempt's number where it goes on with one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from broker_pipeline import redis_keys
from broker_pipeline.errors import LeaseLostError, StateError
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.script_runner import ScriptRunner

DEFAULT_TTL_S = 10.0
RENEWAL_S = 0.25
"""From one renewal to the next: whoever lost the lease hears of it soon."""
_NUM_FRESH = 3
"""A renewal is believed for so many times that. A holder that hangs is not deprived of its lease sooner."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Fence:
    """Whose a lease has to be, or nobody's, for an attempt to begin: the request may arrive when another has it.

    A partition that heals lets through what TCP has kept, as does a process that goes on after a standstill. What the
    same process sent in an earlier tenure of the share is let through.
    """

    key: str
    instance: str


class Lease:
    """The right to conduct one share of a pipeline."""

    def __init__(
        self,
        redis: RedisClient,
        namespace: str,
        pipeline: str,
        instance: str,
        *,
        share: str = "",
        ttl_s: float = DEFAULT_TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Name the holder `instance`; a crashed holder's successor gets in after at most `ttl_s` seconds.

        Shares of a pipeline have one counter, so that no two tenures have the same epoch.
        """
        self._name = f"pipeline {pipeline}" + (f", share {share}" if share else "")
        self._ttl_s = ttl_s
        self._renewal_s = min(RENEWAL_S, ttl_s / 20)
        self._clock = clock
        self.fence = Fence(redis_keys.lease(namespace, pipeline, share), instance)
        keys = [self.fence.key, redis_keys.epoch(namespace, pipeline)]
        self._run = ScriptRunner(redis, "lease", keys, {"instance": instance, "ttl_ms": int(ttl_s * 1000)})
        self._valid_until = self._fresh_until = float("-inf")
        self._last_epoch = 0

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have the lease now: one that was not renewed for a moment may be taken away."""
        return self._clock() < self._fresh_until

    async def acquire(self, gone: Collection[str] = ()) -> int | None:
        """Take the lease if it is free and return the new epoch, greater than every earlier one; else None.

        That of a holder which is `gone` (by instance) is free: should it live after all, the epoch fences it.

        Raises `StateError` when Redis cannot be asked.
        """
        asked_at = self._clock()
        is_taken, value, *strange = await self._run(
            "acquire",
            {"last_epoch": self._last_epoch, "gone": dict.fromkeys(gone, True)},
            f"cannot take the lease of {self._name}",
        )
        if strange:
            log.error("epoch_garbled", of=self._name, found=repr(strange[0][:64]), epoch=value)
        if not is_taken:
            return None
        self._note_held(asked_at)
        self._last_epoch = int(value)
        return self._last_epoch

    async def hold(self) -> None:
        """Renew until cancelled; raises `LeaseLostError` in time to stop before another holder begins.

        Put it into the task group of the work that needs the lease.
        """
        while True:
            await asyncio.sleep(self._renewal_s)
            await self._renew_in_time()

    async def release(self) -> None:
        """Let a standby in at once; nothing happens when the lease is another's."""
        self._forget()
        await self._run("release", {}, "cannot release the lease")

    async def _renew_in_time(self) -> None:
        """Renew once, trying again through errors until the lease ends."""
        reason = "Redis did not answer"
        try:
            async with asyncio.timeout(max(self._valid_until - self._clock(), 0)):
                while True:
                    try:
                        return await self._renew()
                    except LeaseLostError:
                        raise
                    except StateError as error:
                        reason = error.message
                    await asyncio.sleep(self._ttl_s / 50)
        except TimeoutError:
            self._forget()
            raise self._lost(f"not renewed within {self._ttl_s:g} s: {reason}") from None

    async def _renew(self) -> None:
        asked_at = self._clock()
        if not await self._run("renew", {}, "cannot renew the lease"):
            self._forget()
            raise self._lost("another conductor has it, or Redis lost it")
        self._note_held(asked_at)

    def _note_held(self, asked_at: float) -> None:
        self._valid_until = asked_at + self._ttl_s
        self._fresh_until = asked_at + _NUM_FRESH * self._renewal_s

    def _forget(self) -> None:
        self._valid_until = self._fresh_until = float("-inf")

    def _lost(self, reason: str) -> LeaseLostError:
        return LeaseLostError(f"lost the lease of {self._name}: {reason}")
