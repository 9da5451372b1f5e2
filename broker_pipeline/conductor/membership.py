"""How conductors know of each other: each keeps a record among the workers', and reads who has which share."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from broker_pipeline import __version__, redis_keys, subjects
from broker_pipeline.conductor.surroundings import Surroundings
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.scheduling.policies.shares import shares_of
from broker_pipeline.state.redis_client import state_errors
from broker_pipeline.state.registry import WorkerRegistry


@dataclass(frozen=True, slots=True)
class Census:
    """Conductors, shares, and who has which."""

    members: frozenset[str] = frozenset()
    shares: frozenset[str] = frozenset()
    holders: Mapping[str, str] = field(default_factory=dict)


class Membership:
    """This conductor among those of its pipeline."""

    def __init__(self, around: Surroundings) -> None:
        """Let a record that nobody renews lapse before its holder's leases do, so that others count without it."""
        common = around.common
        self._around = around
        self._registry = WorkerRegistry(
            around.redis, common.namespace, common.pipeline, ttl_s=around.settings.lease_ttl_s / 2
        )
        name = f"conductor-{around.instance}"
        self._record = WorkerRecord(
            worker=name,
            instance=around.instance,
            role="conductor",
            pipeline=common.pipeline,
            subject=subjects.worker_root(common.namespace, common.pipeline, name, around.instance),
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            fingerprint=around.model.facts.fingerprint,
            started_at=time.time(),
        )

    async def look(self) -> Census:
        """Say that this conductor is there, and return who else is. Raises `StateError`."""
        await self._registry.renew(self._record)
        records = await self._registry.records()
        shares = shares_of(records)
        present = [record for record in records if record.role == "conductor"]
        # a lease of nobody who is there is asked for until it ends, or, where it has no end, is given one
        names = {record.instance for record in present}
        holders = {share: holder for share, holder in (await self._holders(sorted(shares))).items() if holder in names}
        return Census(
            # one of another model cannot use these shares
            members=frozenset(each.instance for each in present if each.fingerprint == self._record.fingerprint),
            shares=shares,
            holders=holders,
        )

    async def leave(self) -> None:
        """Let others count without this one. Raises `StateError`."""
        await self._registry.release(self._record)

    async def _holders(self, shares: list[str]) -> dict[str, str]:
        common = self._around.common
        keys = [redis_keys.lease(common.namespace, common.pipeline, share) for share in shares]
        with state_errors("cannot read the leases"):
            found: Any = await self._around.redis.mget(keys)
        held = zip(shares, found, strict=True)
        return {share: holder.decode(errors="replace") for share, holder in held if holder is not None}
