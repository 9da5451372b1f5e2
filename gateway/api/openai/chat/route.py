"""`POST /v1/chat/completions`: whole, or as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import msgspec
from aiohttp import web

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobRecord, TokenEntry
from gateway.api.error_shapes import openai_error
from gateway.api.errors import job_failure_answer, status_of_failure
from gateway.api.event_stream import EventStream
from gateway.api.json_answer import json_answer
from gateway.api.openai.chat.chunks import CompletionChunks
from gateway.api.openai.chat.completion import completion
from gateway.api.openai.chat.parse import ChatDraft, parse
from gateway.api.openai.follow import ended, failure_of, for_client
from gateway.api.openai.stream import stream_job
from gateway.api.request_facts import leave_untimed
from gateway.api.submitting import submit
from gateway.intake.request_reader import client_of, read_json
from gateway.settings import Limits
from gateway.wiring import GATEWAY, Gateway

_DONE = b"data: [DONE]\n\n"


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.post("/v1/chat/completions", create_completion)]


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Run a chat completion as a job, and answer with its outcome."""
    gateway = request.app[GATEWAY]
    async with gateway.watch.place(client_of(request)):
        accepted, draft = await submit(request, _read)
        leave_untimed()
        with gateway.metrics.streams.track_inprogress():
            record = accepted.record
            if not draft.stream:
                return await for_client(request, record.job_id, _whole(gateway, record.job_id))
            stream = EventStream(request)
            try:
                return await for_client(
                    request, record.job_id, stream_job(request, record.job_id, _ChatTeller(record, draft), stream)
                )
            except ConnectionError:
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


class _ChatTeller:
    """Says it in chunks."""

    def __init__(self, record: JobRecord, draft: ChatDraft) -> None:
        self._chunks = CompletionChunks(record.job_id, int(record.created_at), draft)

    def begin(self, tokens: Sequence[TokenEntry]) -> bytes:
        return _events(self._chunks.begin(tokens))

    def take(self, tokens: Sequence[TokenEntry]) -> bytes:
        return _events(self._chunks.take(tokens))

    async def end(self, record: JobRecord) -> bytes:
        failure = failure_of(record)
        if failure or record.result is None:
            return self.fail(failure or Failure("internal", "the job has no result"))
        return _events(self._chunks.end(record.result)) + _DONE

    def fail(self, failure: Failure) -> bytes:
        return _events([openai_error(failure, status_of_failure(failure))]) + _DONE


def _events(bodies: Iterable[msgspec.Struct]) -> bytes:
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(body) for body in bodies)
