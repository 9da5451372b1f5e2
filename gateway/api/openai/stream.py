"""Streams a job to the client that asked for it, in the words of the endpoint that it came by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Protocol

from aiohttp import web

from broker_pipeline.errors import Failure, ModelChangedError, PipelineError
from broker_pipeline.messages.jobs import JobRecord, TokenEntry
from gateway.api.errors import job_failure_answer
from gateway.api.event_stream import EventStream
from gateway.api.openai.follow import failure_of, shutting_down, stop_unless_it_may_come_back
from gateway.jobs.progress import JobProgress
from gateway.wiring import GATEWAY, Gateway


class Teller(Protocol):
    """Says in server-sent events what becomes of a job; each method returns them encoded."""

    def begin(self, tokens: Sequence[TokenEntry]) -> bytes:
        """Return what comes before any token; these are the first, which `take` gets next."""

    def take(self, tokens: Sequence[TokenEntry]) -> bytes:
        """Return what some more tokens add; nothing where that is nothing."""

    async def end(self, record: JobRecord) -> bytes:
        """Return what comes after the last token of a job that has ended, in whatever way."""

    def fail(self, failure: Failure) -> bytes:
        """Return what ends a stream whose job has not ended."""


async def stream_job(request: web.Request, job_id: str, teller: Teller, stream: EventStream) -> web.StreamResponse:
    """Stream until the job has ended; a failure before the first token is an answer like any other.

    A job whose stream ends before it is stopped as that of a client that goes.
    """
    is_broken = False
    try:
        record = await _pump(request.app[GATEWAY], job_id, teller, stream)
        failure = failure_of(record)
        if failure and not stream.is_open:
            return job_failure_answer(failure)
        last = await teller.end(record)
    except PipelineError as error:
        if not stream.is_open:
            raise
        last, is_broken = teller.fail(error.to_failure()), True
    await stream.write(last)
    await stream.close()
    if is_broken:
        await stop_unless_it_may_come_back(request, job_id)
    return stream.response


async def _pump(gateway: Gateway, job_id: str, teller: Teller, stream: EventStream) -> JobRecord:
    has_begun = False
    async with aclosing(gateway.watch.events(JobProgress(job_id), job_id)) as news:
        async for event in news:
            if event is None:
                await stream.keep_alive()
                continue
            if event.kind == "restarted":
                raise ModelChangedError("another model answers now, and what was said is void; send the request again")
            has_result = event.record is not None and event.record.result is not None
            if not has_begun and (event.tokens or has_result):
                has_begun = True
                await stream.write(teller.begin(event.tokens))
            if event.tokens and (told := teller.take(event.tokens)):
                await stream.write(told)
            gateway.metrics.streamed_tokens.inc(len(event.tokens))
            if event.kind == "finished" and event.record is not None:
                return event.record
    raise shutting_down()
