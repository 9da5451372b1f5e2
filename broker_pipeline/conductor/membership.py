"""How conductors know of each other: each keeps a record among the workers', and reads who has which share."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from broker_pipeline import __version__, redis_keys, subjects
from broker_pipeline.conductor.peer_watch import PeerWatch
from broker_pipeline.conductor.surroundings import Surroundings
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.scheduling.policies.shares import Shares
from broker_pipeline.security.credentials import own_worker_name
from broker_pipeline.security.tls_contexts import secrets_tls, with_certificate
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
        """Be present in `record`.

        One that nobody renews lapses before its holder's leases do, so that others count without it by then.
        """
        common = around.common
        self._around = around
        self._shares = Shares()
        self._registry = WorkerRegistry(
            around.redis, common.namespace, common.pipeline, ttl_s=around.settings.lease_ttl_s / 2
        )
        name = own_worker_name(common.secrets, f"conductor-{around.instance}")
        self.record = WorkerRecord(
            worker=name,
            instance=around.instance,
            role="conductor",
            pipeline=common.pipeline,
            subject=subjects.worker_root(common.namespace, common.pipeline, "conductor", name, around.instance),
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            fingerprint=around.model.facts.fingerprint,
            started_at=time.time(),
            answers_hellos=True,
        )
        self.peers = PeerWatch(transport=around.transport, record=self.record, clock=around.clock)
        """Which of the others are gone whatever their records say."""

    async def look(self) -> Census:
        """Say that this conductor is there, and return who else is. Raises `StateError`."""
        await self._registry.renew(with_certificate(self.record, secrets_tls(self._around.common.secrets)))
        records = await self._registry.records()
        shares = self._shares.see(records, self._around.clock())
        conductors = [record for record in records if record.role == "conductor"]
        self.peers.meet(conductors)
        present = [record for record in conductors if record.instance not in self.peers.gone]
        # a lease of nobody who is there is asked for until it ends, or, where it has no end, is given one
        names = {record.instance for record in present}
        holders = {share: holder for share, holder in (await self._holders(sorted(shares))).items() if holder in names}
        return Census(
            # one of another model cannot use these shares
            members=frozenset(each.instance for each in present if each.fingerprint == self.record.fingerprint),
            shares=shares,
            holders=holders,
        )

    async def leave(self) -> None:
        """Let others count without this one. Raises `StateError`."""
        await self._registry.release(self.record)

    async def _holders(self, shares: list[str]) -> dict[str, str]:
        common = self._around.common
        keys = [redis_keys.lease(common.namespace, common.pipeline, share) for share in shares]
        with state_errors("cannot read the leases"):
            found: Any = await self._around.redis.mget(keys)
        held = zip(shares, found, strict=True)
        return {share: holder.decode(errors="replace") for share, holder in held if holder is not None}
