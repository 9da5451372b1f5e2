"""Names of workers in Redis, each of one instance at a time: taken, renewed and given back without scripts.

Whoever may run a script of its own could keep Redis busy for good, or fill its memory with scripts, which count
nowhere: so stages and vision workers, whose hosts are trusted with nothing but their own records, run none.

    WATCH record ──► whose is it? ──► MULTI, the record, the names, EXEC      once more where it has changed meanwhile
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.exceptions import RedisError, ResponseError, WatchError

from broker_pipeline.state.redis_client import RedisClient, state_errors

_MAX_TRIES = 8


class _Instance(msgspec.Struct, frozen=True):
    instance: str


_decode = msgspec.json.Decoder(_Instance).decode


@dataclass(frozen=True, slots=True)
class Held:
    """The record of another live instance, and how long it lasts."""

    record: bytes
    left_ms: int


class NameClaims:
    """The names of one pipeline's workers."""

    def __init__(self, redis: RedisClient, indexes: tuple[str, str], pipeline: str) -> None:
        """`indexes` are sets: of names, and of pipelines."""
        self._redis = redis
        self._workers, self._pipelines = indexes
        self._pipeline = pipeline

    async def take(self, key: str, worker: str, instance: str, record: bytes, ttl_ms: int) -> Held | None:
        """Write a record at `key` for a time to live; where another live instance has the name, return what it has.

        Raises `StateError`; `GarbledStateError` where an index is no set.
        """

        def write(transaction: Any) -> None:
            transaction.set(key, record, px=ttl_ms)
            transaction.sadd(self._workers, worker)
            transaction.sadd(self._pipelines, self._pipeline)

        return await self._change(key, instance, write, f"cannot register {worker}")

    async def give_back(self, key: str, worker: str, instance: str) -> None:
        """Delete a record, unless another instance has the name. Raises as `take` does.

        The name leaves the set when somebody lists it: whoever may take names out may take out those of others.
        """

        def write(transaction: Any) -> None:
            transaction.delete(key)

        await self._change(key, instance, write, f"cannot take {worker} off the registry")

    async def _change(self, key: str, instance: str, write: Callable[[Any], None], action: str) -> Held | None:
        with state_errors(action):
            try:
                for _ in range(_MAX_TRIES):
                    try:
                        return await self._try(key, instance, write)
                    except WatchError:
                        continue
            except RedisError as error:
                await self._redis.note_error(error)
                raise
            raise WatchError("others change it all the time")

    async def _try(self, key: str, instance: str, write: Callable[[Any], None]) -> Held | None:
        """Do it, unless another instance has the name; raises `WatchError` where the record changed meanwhile."""
        async with self._redis.pipeline(transaction=True) as transaction:
            await transaction.watch(key)
            held = await _string(transaction, key)
            if held is not None and _instance_of(held) not in {None, instance}:
                return Held(held, await transaction.pttl(key))
            transaction.multi()  # type: ignore[no-untyped-call]
            write(transaction)
            await transaction.execute()
        return None


async def _string(transaction: Any, key: str) -> bytes | None:
    """Return what stands there; None where nothing does, or something else than a string, which SET replaces."""
    try:
        held: bytes | None = await transaction.get(key)
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return None
    return held


def _instance_of(record: bytes) -> str | None:
    """Return whose a record is; None for something that is no record, and so belongs to nobody."""
    try:
        return _decode(record).instance
    except (msgspec.MsgspecError, ValueError):
        return None
