"""`POST /v1/chat/completions`: whole, or as a stream."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from functools import partial

import msgspec
from aiohttp import web

from broker_pipeline.errors import Failure, ModelChangedError, PipelineError
from broker_pipeline.messages.jobs import JobRecord
from gateway.api.error_shapes import openai_error
from gateway.api.errors import job_failure_answer, status_of_failure
from gateway.api.event_stream import EventStream
from gateway.api.json_answer import json_answer
from gateway.api.openai.chat.chunks import CompletionChunks
from gateway.api.openai.chat.completion import completion
from gateway.api.openai.chat.parse import ChatDraft, parse
from gateway.api.openai.follow import ended, failure_of, for_client, shutting_down
from gateway.api.request_facts import leave_untimed
from gateway.api.submitting import submit
from gateway.intake.request_reader import read_json
from gateway.jobs.progress import JobProgress
from gateway.settings import Limits
from gateway.wiring import GATEWAY, Gateway

_DONE = b"data: [DONE]\n\n"


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.post("/v1/chat/completions", create_completion)]


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Run a chat completion as a job, and answer with its outcome."""
    gateway = request.app[GATEWAY]
    async with gateway.watch.place():
        accepted, draft = await submit(request, _read)
        leave_untimed()
        with gateway.metrics.streams.track_inprogress():
            record = accepted.record
            if not draft.stream:
                return await for_client(request, record.job_id, _whole(gateway, record.job_id))
            stream = EventStream(request)
            try:
                return await for_client(request, record.job_id, _streamed(gateway, record, draft, stream))
            except (ConnectionError, TimeoutError):
                return stream.response


async def _read(request: web.Request, limits: Limits) -> ChatDraft:
    return await read_json(request, limits, partial(parse, limits=limits))


async def _whole(gateway: Gateway, job_id: str) -> web.Response:
    record = await ended(gateway, job_id)
    if failure := failure_of(record):
        return job_failure_answer(failure)
    spec = await gateway.store.spec(job_id)
    tokens = await gateway.store.tokens(job_id) if spec.sampling.logprobs is not None else ()
    return json_answer(completion(spec, record, tokens))


async def _streamed(gateway: Gateway, record: JobRecord, draft: ChatDraft, stream: EventStream) -> web.StreamResponse:
    """Stream until the job has ended; a failure before the first token is an answer like any other."""
    chunks = CompletionChunks(record.job_id, int(record.created_at), draft)
    try:
        failure = await _pump(gateway, record.job_id, chunks, stream)
    except PipelineError as error:
        if not stream.is_open:
            raise
        failure = error.to_failure()
    if failure and not stream.is_open:
        return job_failure_answer(failure)
    if failure:
        await stream.write(_event(openai_error(failure, status_of_failure(failure))))
    await stream.write(_DONE)
    await stream.close()
    return stream.response


async def _pump(gateway: Gateway, job_id: str, chunks: CompletionChunks, stream: EventStream) -> Failure | None:
    has_begun = False
    async with aclosing(gateway.watch.events(JobProgress(job_id), job_id)) as events:
        async for event in events:
            if event is None:
                await stream.keep_alive()
            elif event.kind == "restarted":
                raise ModelChangedError("another model answers now, and what was said is void; send the request again")
            elif event.kind == "tokens" or (event.record and event.record.result and not has_begun):
                await _send(stream, () if has_begun else chunks.begin())
                has_begun = True
            if event is not None:
                gateway.metrics.streamed_tokens.inc(len(event.tokens))
                await _send(stream, chunks.take(event.tokens))
            if event is not None and event.kind == "finished" and event.record:
                if event.record.result and not failure_of(event.record):
                    await _send(stream, chunks.end(event.record.result))
                return failure_of(event.record)
    raise shutting_down()


async def _send(stream: EventStream, chunks: Iterable[msgspec.Struct]) -> None:
    if events := b"".join(map(_event, chunks)):
        await stream.write(events)


def _event(body: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(body)
