"""Tells streaming clients what has happened to a job, after Redis holds it."""

from __future__ import annotations

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.errors import TransportError
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()


class JobEvents:
    """Publishes events of one namespace's jobs; those of a job that nobody watches are not worth making."""

    def __init__(self, transport: Transport, namespace: str, watchers: Watchers) -> None:
        self._transport = transport
        self._namespace = namespace
        self.is_watched = watchers.is_watched
        self.watched_anew = watchers.watched_anew

    async def say(self, event: JobEvent) -> None:
        """Publish an event. With the broker away it is lost: clients find the same in Redis, which has it already."""
        try:
            await self._transport.publish(subjects.job_events(self._namespace, event.job_id, event.kind), event)
        except TransportError as error:
            log.debug("event_lost", job=event.job_id, kind=event.kind, reason=error.message)
