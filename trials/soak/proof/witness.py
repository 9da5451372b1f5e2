"""What is seen of a pipeline from outside: the events of jobs as they come, and what Redis holds in the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker_pipeline import subjects
from broker_pipeline.errors import TransportError
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.messages.jobs import JobEvent, JobRecord
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.wire.transport import Transport
from trials.soak.proof.job_batch import JobBatch
from trials.soak.proof.leftovers import Leftovers
from trials.soak.proof.proofs import Evidence
from trials.soak.proof.reference import Examination
from trials.soak.proof.timeline import Timelines

_WATCH_S = 0.5
_CONNECT_S = 30.0
_PAGE = 500


class Witness:
    """Looks on over connections of its own. Made by `open`."""

    def __init__(self, transport: Transport, namespace: str, store: JobStore, leftovers: Leftovers) -> None:
        """Look at the jobs of a namespace, which `store` holds."""
        self.timelines = Timelines()
        self.leftovers = leftovers
        self._transport = transport
        self._namespace = namespace
        self._store = store

    @classmethod
    @asynccontextmanager
    async def open(cls, cluster: LocalCluster) -> AsyncIterator[Witness]:
        """Connect to a running cluster."""
        namespace, pipeline = cluster.settings.namespace, cluster.settings.pipeline
        async with (
            Transport.open(cluster.nats_url, name="soak", connect_timeout_s=_CONNECT_S) as transport,
            open_redis(cluster.redis_url) as redis,
        ):
            leftovers = Leftovers(transport, redis, namespace, pipeline)
            yield cls(transport, namespace, JobStore(redis, namespace), leftovers)

    async def follow(self) -> None:
        """Listen to all jobs' events until cancelled, as a streaming client would."""
        subject = subjects.job_events(self._namespace, "*")
        async with self._transport.subscribe(subject, JobEvent) as events, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_for_all())
            async for event in events:
                self.timelines.take(event.body, time.monotonic())

    async def _ask_for_all(self) -> None:
        """Keep asking conductors, also those that have just begun, to tell of every job."""
        while True:
            with contextlib.suppress(TransportError):  # the broker is a target as well
                request = WatchRequest(is_for_all=True, for_s=10.0)
                await self._transport.publish(subjects.watch(self._namespace), request)
            await asyncio.sleep(_WATCH_S)

    async def evidence(self, examination: Examination, jobs: JobBatch) -> Evidence:
        """Put together what was asked, what came back and what Redis holds."""
        records = await self._all_records()
        tokens = {
            record.job_id: [entry.token_id for entry in await self._store.tokens(record.job_id)] for record in records
        }
        return Evidence(
            answers=examination.answers,
            submissions=jobs.submissions,
            unanswered=jobs.unanswered,
            records=records,
            tokens=tokens,
            counts=await self._store.counts(),
            timelines=self.timelines.jobs,
        )

    async def _all_records(self) -> list[JobRecord]:
        records: list[JobRecord] = []
        before: str | None = None
        while True:
            page = await self._store.list(before, limit=_PAGE)
            records += page.records
            if page.next is None:
                return records
            before = page.next
