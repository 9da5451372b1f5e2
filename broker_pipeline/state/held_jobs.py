"""Who has which job: how a new tenure gets the jobs of the one before it back from the queue at once.

begin_attempt ──► job: held = {epoch, share, delivery} ──► that conductor dies ──► the next tenure of the share
                                                                                   hands the delivery back
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from broker_pipeline import redis_keys, subjects
from broker_pipeline.state.job_pages import job_fields
from broker_pipeline.state.redis_client import RedisClient, state_errors

_PAGE = 1000


class Hold(msgspec.Struct, frozen=True):
    """A job in the hands of one tenure. `delivery` is where the queue is told of it."""

    epoch: int
    share: str
    delivery: Annotated[str, Meta(max_length=1024, pattern=subjects.DELIVERY)]


_decode = msgspec.json.Decoder(Hold).decode


class HeldJobs:
    """The running jobs of one namespace, by who has them."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        self._redis = redis
        self._namespace = namespace

    async def all(self) -> list[Hold]:
        """Return all jobs that somebody has, or had when it died, but for those nobody can read.

        Raises `StateError`.
        """
        key = redis_keys.jobs_with_status(self._namespace, "running")
        holds: list[Hold] = []
        with state_errors("cannot list the jobs that are held"):
            names: Any = await self._redis.zrange(key, 0, -1)
            job_ids = [name.decode(errors="replace") for name in names]
            for first in range(0, len(job_ids), _PAGE):
                rows = await job_fields(self._redis, self._namespace, job_ids[first : first + _PAGE], ("held",))
                holds += _read(rows)
        return holds


def read_hold(held: bytes | str) -> Hold | None:
    """Read what a job's record says of its holder; None where nobody can."""
    try:
        return _decode(held)
    except (msgspec.MsgspecError, ValueError):
        return None


def _read(rows: Sequence[Any]) -> Iterator[Hold]:
    for row in rows:
        if isinstance(row, list) and row[0] is not None and (hold := read_hold(row[0])):
            yield hold
