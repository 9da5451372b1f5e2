"""`GET /v1/jobs/{job_id}/events`: a job's life as server-sent events.

    retry: 1000

    event: queued            id: 0     the job's record
    event: started           id: 0     the job's record
    event: tokens            id: 3     tokens 0, 1, 2
    : idle                             after 15 s without news
    event: finished          id: 64    the job's record with its result

An event's id is the number of tokens seen after it. A client that reconnects sends the last one as `Last-Event-ID`, as
browsers do by themselves, and continues with the next token. Where a job began again from token 0, clients are told by
`restarted`, and from then on ids have the attempt as well that it began again with: `12.3`.
"""

from __future__ import annotations

import re
from contextlib import aclosing

import msgspec
import structlog
from aiohttp import web

from broker_pipeline.errors import InvalidRequestError, JobNotFoundError, StateError, TransportError
from broker_pipeline.messages.jobs import JobEvent
from gateway.api.event_stream import EventStream
from gateway.api.native.jobs import job_id_of
from gateway.api.request_facts import leave_untimed, request_id
from gateway.intake.request_reader import client_of
from gateway.jobs.progress import JobProgress
from gateway.wiring import GATEWAY, Gateway

LAST_EVENT_ID_HEADER = "Last-Event-ID"
EVENT_ID = re.compile(r"([0-9]{1,9})(?:\.([1-9][0-9]{0,8}))?")

log = structlog.get_logger()


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.get("/v1/jobs/{job_id}/events", stream_events, allow_head=False)]


async def stream_events(request: web.Request) -> web.StreamResponse:
    """Stream a job's events until it has finished, the client leaves or the gateway stops."""
    gateway = request.app[GATEWAY]
    job_id = job_id_of(request)
    progress = _progress(request, job_id)
    await gateway.jobs.get(job_id)  # an unknown job is a 404, not an empty stream
    leave_untimed()
    async with gateway.watch.place(client_of(request)):
        with gateway.metrics.streams.track_inprogress():
            stream = EventStream(request)
            await stream.write(b"retry: 1000\n\n")
            try:
                await _pump(gateway, progress, job_id, stream)
            except ConnectionError as error:
                log.info("event_stream_lost", job=job_id, request_id=request_id(), reason=type(error).__name__)
            return stream.response


async def _pump(gateway: Gateway, progress: JobProgress, job_id: str, stream: EventStream) -> None:
    """Move events from the watch to the client; an outage behind us ends the stream, and the client comes back."""
    farewell = b": the gateway is stopping; reconnect\n\n"
    try:
        async with aclosing(gateway.watch.events(progress, job_id)) as events:
            async for event in events:
                await (stream.keep_alive() if event is None else stream.write(encode_event(event)))
                gateway.metrics.streamed_tokens.inc(len(event.tokens) if event else 0)
    except (StateError, TransportError, JobNotFoundError) as error:
        farewell = f": {error.code}; reconnect\n\n".encode()
        log.warning("event_stream_interrupted", job=job_id, code=error.code, message=error.message)
    if not progress.is_finished:
        await stream.write(farewell)
    await stream.close()


def encode_event(event: JobEvent) -> bytes:
    """Return the event as a server-sent event; its id is the number of tokens seen after it."""
    event_id = str(event.index + len(event.tokens))
    if event.first_attempt > 1:
        event_id += f".{event.first_attempt}"
    return b"event: %b\nid: %b\ndata: %b\n\n" % (event.kind.encode(), event_id.encode(), msgspec.json.encode(event))


def _progress(request: web.Request, job_id: str) -> JobProgress:
    sent = request.headers.get(LAST_EVENT_ID_HEADER)
    if sent is None:
        return JobProgress(job_id)
    if not (found := EVENT_ID.fullmatch(sent)):
        raise InvalidRequestError("the id of an event is a number of tokens", field=LAST_EVENT_ID_HEADER)
    num_tokens, first_attempt = (int(number or 1) for number in found.groups())
    return JobProgress(job_id, num_tokens=num_tokens, first_attempt=first_attempt, is_resumed=True)
