"""What acting workers have in common: a record, heartbeats, hellos; they freeze, hang and die when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from broker_pipeline import subjects
from broker_pipeline.errors import (
    PipelineError,
    StaleEpochError,
)
from broker_pipeline.identity import new_instance_id
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.wire.transport import Transport

HEARTBEAT_S = 0.1


class ActingWorker:
    """A record, heartbeats and hellos."""

    def __init__(
        self, transport: Transport, redis: RedisClient, namespace: str, name: str, role: str, **facts: object
    ) -> None:
        instance = new_instance_id()
        root = subjects.worker_root(namespace, "main", role, name, instance)
        self.record = WorkerRecord(
            worker=name, instance=instance, role=role, pipeline="main", subject=root, dtype="float32", **facts
        )  # type: ignore[arg-type]
        self.transport = transport
        self.registry = WorkerRegistry(redis, namespace, "main", ttl_s=2.0)
        self.is_frozen = False
        """As by SIGSTOP: nothing is said or done any more."""
        self.is_hung = False
        """Works no more, but goes on saying that it lives."""
        self.is_deaf = False
        """Answers nothing at all, but goes on saying that it lives."""
        self.is_sick = False
        """Computes nothing: fails all that is asked for."""
        self.epoch = 0
        self.heartbeat_s = HEARTBEAT_S
        self.phase_s = 0.0
        """How long after its registration it begins to say that it lives."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self):  # type: ignore[no-untyped-def]
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def start(self) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self.live(ready))
        await ready.wait()

    async def die(self) -> None:
        """As by SIGKILL: the record stays until it runs out."""
        self.kill()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task

    def kill(self) -> None:
        """Die without waiting for that."""
        if self._task is not None:
            self._task.cancel()

    async def live(self, ready: asyncio.Event) -> None:
        """Be there, and say when; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._answer_hellos())
            await self.serve(tasks)
            await self.registry.register(self.record)
            tasks.create_task(self._announce())
            ready.set()

    async def serve(self, tasks: asyncio.TaskGroup) -> None:
        raise NotImplementedError

    def heartbeat(self) -> Heartbeat:
        record = self.record
        return Heartbeat(
            worker=record.worker, instance=record.instance, role=record.role, transport=self.transport.counts
        )

    async def _announce(self) -> None:
        await asyncio.sleep(self.phase_s)
        while True:
            if not self.is_frozen:
                with suppress(PipelineError):
                    await self.registry.renew(self.record)
                    await self.transport.publish(subjects.heartbeat(self.record.subject), self.heartbeat())
            await asyncio.sleep(self.heartbeat_s)

    async def _answer_hellos(self) -> None:
        async with self.transport.subscribe(subjects.control(self.record.subject), Hello) as hellos:
            async for message in hellos:
                if self.is_deaf:
                    continue
                await self.unfrozen(for_hello=True)
                if message.body.epoch < self.epoch:
                    message.refuse(StaleEpochError("an older epoch"))
                    continue
                self.adopt(message.body.epoch)
                await message.respond(HelloReply(record=self.record))

    def adopt(self, epoch: int) -> None:
        self.epoch = max(self.epoch, epoch)

    async def unfrozen(self, *, for_hello: bool = False) -> None:
        while self.is_frozen or (self.is_hung and not for_hello):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextmanager
def frozen(*workers: ActingWorker) -> Iterator[None]:
    """Stop workers as SIGSTOP would, and let them go on afterwards."""
    for worker in workers:
        worker.is_frozen = True
    yield
    for worker in workers:
        worker.is_frozen = False
