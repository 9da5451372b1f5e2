"""How a worker shows itself to the rest of its pipeline: its record, its state, its answer to a hello."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from broker_pipeline import __version__, subjects
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import ContractError, PipelineError, SlowConsumerError, TransportError
from broker_pipeline.identity import new_instance_id
from broker_pipeline.messages.base import WireStruct
from broker_pipeline.messages.control import DrainReply, DrainRequest, Hello, HelloReply
from broker_pipeline.messages.workers import Role, WorkerRecord
from broker_pipeline.security.credentials import own_worker_name
from broker_pipeline.security.tls_contexts import TlsContexts, with_certificate
from broker_pipeline.wire.transport import Received

log = structlog.get_logger()

R = TypeVar("R", Hello, DrainRequest)


def new_record(
    role: Role, name: str, settings: CommonSettings, *, fingerprint: str, device: str, dtype: str, **of_role: Any
) -> WorkerRecord:
    """Return the record of a worker that starts now, under a new instance id; `of_role` is what only its role has."""
    instance, name = new_instance_id(), own_worker_name(settings.secrets, name)
    return WorkerRecord(
        worker=name,
        instance=instance,
        role=role,
        pipeline=settings.pipeline,
        subject=subjects.worker_root(settings.namespace, settings.pipeline, role, name, instance),
        host=socket.gethostname(),
        pid=os.getpid(),
        version=__version__,
        fingerprint=fingerprint,
        device=device,
        dtype=dtype,
        started_at=time.time(),
        **of_role,
    )


class Presence:
    """A worker's record, whose state turns from ready to draining once."""

    def __init__(self, record: WorkerRecord, tls: TlsContexts | None = None) -> None:
        self._record = record
        self._tls = tls

    def record(self) -> WorkerRecord:
        """Return the record as it is to be announced now."""
        return with_certificate(self._record, self._tls)

    def start_draining(self) -> None:
        """Say from now on that no new session should come here."""
        self._record = msgspec.structs.replace(self._record, state="draining")


async def answer_hellos(
    messages: AsyncIterator[Received[Hello]],
    presence: Presence,
    admit: Callable[[int], Awaitable[None]],
) -> None:
    """Answer each hello with the worker's record, once `admit` has taken its epoch."""

    async def answer(hello: Hello) -> HelloReply:
        await admit(hello.epoch)
        return HelloReply(record=presence.record())

    await _answer_all(messages, presence, answer)


async def answer_drains(
    messages: AsyncIterator[Received[DrainRequest]], presence: Presence, drain: asyncio.Event
) -> None:
    """Answer each request to drain with the worker's record, which says so from then on, and set `drain`."""

    async def answer(_: DrainRequest) -> DrainReply:
        presence.start_draining()
        drain.set()
        return DrainReply(record=presence.record())

    await _answer_all(messages, presence, answer)


async def _answer_all(
    messages: AsyncIterator[Received[R]], presence: Presence, answer: Callable[[R], Awaitable[WireStruct]]
) -> None:
    async for message in messages:
        try:
            if message.body.pipeline != presence.record().pipeline:
                raise ContractError(f"this worker serves pipeline {presence.record().pipeline}", field="pipeline")
            await message.respond(await answer(message.body))
        except TransportError as error:
            log.warning("answer_lost", subject=message.subject, reason=error.message)
        except PipelineError as error:
            refuse(message, error)


def refuse(message: Received[Any], error: PipelineError) -> None:
    """Answer a request with an error; an answer that cannot be sent is logged, the sender's deadline does the rest."""
    log.warning("request_refused", subject=message.subject, code=error.code, reason=error.message)
    try:
        message.refuse(error)
    except TransportError as lost:
        log.warning("refusal_lost", subject=message.subject, reason=lost.message)


def log_drop(error: SlowConsumerError, _: object) -> None:
    """For subscriptions whose senders are answered by the transport when something is dropped."""
    log.error("message_dropped", reason=error.message)
