"""`/v1/responses`: create, whole or as a stream or in the background; show, cancel and delete."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence

import msgspec
from aiohttp import web

from broker_pipeline.errors import Failure, InvalidRequestError, JobNotFoundError, JobStateError
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord, JobSpec, TokenEntry
from gateway.access.caller import current_caller
from gateway.api.errors import job_failure_answer
from gateway.api.event_stream import EventStream
from gateway.api.json_answer import json_answer
from gateway.api.openai.follow import ended, failure_of, for_client
from gateway.api.openai.responses.answers import DeletedResponse
from gateway.api.openai.responses.events import Event, ResponseEvents
from gateway.api.openai.responses.input_items import InputItemQuery, input_items, page_of_items
from gateway.api.openai.responses.parse import PREVIOUS, ResponseDraft, parse, read_request
from gateway.api.openai.responses.response import response
from gateway.api.openai.stream import stream_job
from gateway.api.request_facts import leave_untimed
from gateway.api.submitting import submit
from gateway.intake.request_reader import client_of, read_json
from gateway.intake.validation import convert_strings
from gateway.settings import Limits
from gateway.wiring import GATEWAY, Gateway

_CANCEL_S = 2.0
_RESPONSE_ID = re.compile(r"resp_([A-Za-z0-9_-]{1,64})")


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [
        web.post("/v1/responses", create_response),
        web.get("/v1/responses/{response_id}", show_response, allow_head=False),
        web.post("/v1/responses/{response_id}/cancel", cancel_response),
        web.delete("/v1/responses/{response_id}", delete_response),
        web.get("/v1/responses/{response_id}/input_items", list_input_items, allow_head=False),
    ]


async def create_response(request: web.Request) -> web.StreamResponse:
    """Run a response as a job, and answer with its outcome."""
    gateway = request.app[GATEWAY]
    async with gateway.watch.place(client_of(request)):
        accepted, draft = await submit(request, _read)
        leave_untimed()
        spec = await gateway.store.spec(accepted.record.job_id)
        if draft.store and spec.media():
            await gateway.media.keep_beyond(spec)
        if draft.background:
            return await _answer(gateway, spec, accepted.record)
        with gateway.metrics.streams.track_inprogress():
            if not draft.stream:
                return await for_client(request, spec.job_id, _whole(gateway, spec))
            stream = EventStream(request)
            try:
                teller = _ResponseTeller(gateway, spec, accepted.record, await _model(gateway))
                return await for_client(request, spec.job_id, stream_job(request, spec.job_id, teller, stream))
            except ConnectionError:
                return stream.response


async def show_response(request: web.Request) -> web.Response:
    """Show a response as it stands."""
    gateway = request.app[GATEWAY]
    if request.query.get("stream", "false").lower() not in ("false", "0"):
        raise InvalidRequestError("a response is streamed while it is made; ask again without this", field="stream")
    spec, record = await _job(gateway, request.match_info["response_id"], "response_id")
    return await _answer(gateway, spec, record)


async def cancel_response(request: web.Request) -> web.Response:
    """Stop a response at its next token, and show it then; where that takes long, as it stands."""
    gateway = request.app[GATEWAY]
    spec, _ = await _job(gateway, request.match_info["response_id"], "response_id")
    record = await gateway.jobs.cancel(spec.job_id)
    if record.status not in FINAL_STATUSES:
        record = await gateway.watch.finished(spec.job_id, _CANCEL_S)
    return await _answer(gateway, spec, record)


async def delete_response(request: web.Request) -> web.Response:
    """Forget a response that has ended, and its pictures; what goes on with it already is left alone."""
    gateway = request.app[GATEWAY]
    name = request.match_info["response_id"]
    spec, record = await _job(gateway, name, "response_id")
    if record.status not in FINAL_STATUSES:
        raise JobStateError("this response has not ended yet: cancel it first", field="response_id")
    if record.status == "failed":
        await gateway.retries.discard(spec.job_id)
    else:
        await gateway.store.forget_ended([spec.job_id])
    await gateway.media.release_beyond(spec)
    return json_answer(DeletedResponse(id=name))


async def list_input_items(request: web.Request) -> web.Response:
    """Show a page of the conversation that a response was made of."""
    query = convert_strings(request.query, InputItemQuery)
    spec, _ = await _job(request.app[GATEWAY], request.match_info["response_id"], "response_id")
    return json_answer(page_of_items(input_items(spec), query))


async def _read(request: web.Request, limits: Limits) -> ResponseDraft:
    asked = await read_json(request, limits, read_request)
    previous = None
    if asked.previous_response_id is not None:
        previous = await _job(request.app[GATEWAY], asked.previous_response_id, PREVIOUS)
        if previous[1].status not in FINAL_STATUSES:
            raise InvalidRequestError("this response has not ended yet", field=PREVIOUS)
    return await asyncio.to_thread(parse, asked, limits, previous)  # a grammar takes tens of milliseconds


async def _job(gateway: Gateway, name: str, field: str) -> tuple[JobSpec, JobRecord]:
    """Return the job that is called so as a response; raises `JobNotFoundError`, also for a job of another API."""
    found = _RESPONSE_ID.fullmatch(name)
    try:
        spec = await gateway.store.spec(found[1]) if found else None
        if spec and spec.response is not None and current_caller().may_see(spec.tenant):
            return spec, await gateway.store.get(spec.job_id)
    except JobNotFoundError:
        pass
    raise JobNotFoundError(f"no response is called {name!r}, or any more", field=field)


async def _whole(gateway: Gateway, spec: JobSpec) -> web.Response:
    record = await ended(gateway, spec.job_id)
    if failure := failure_of(record):
        return job_failure_answer(failure)
    return await _answer(gateway, spec, record)


async def _answer(gateway: Gateway, spec: JobSpec, record: JobRecord) -> web.Response:
    has_logprobs = spec.sampling.logprobs is not None and record.result is not None
    tokens = await gateway.store.tokens(spec.job_id) if has_logprobs else ()
    return json_answer(response(spec, record, await _model(gateway), tokens))


async def _model(gateway: Gateway) -> str:
    return (await gateway.reader.limits()).model or ""


class _ResponseTeller:
    """Says it in events of OpenAI's responses."""

    def __init__(self, gateway: Gateway, spec: JobSpec, record: JobRecord, model: str) -> None:
        self._gateway = gateway
        self._spec = spec
        self._begun = response(spec, record, model)
        self._has_logprobs = spec.sampling.logprobs is not None
        self._events = ResponseEvents(spec.job_id, has_tools=bool(spec.template.tools), has_logprobs=self._has_logprobs)

    def begin(self, tokens: Sequence[TokenEntry]) -> bytes:  # noqa: ARG002 - chat says by them how long the prompt was
        return _encoded(self._events.begin(self._begun))

    def take(self, tokens: Sequence[TokenEntry]) -> bytes:
        return _encoded(self._events.take(tokens))

    async def end(self, record: JobRecord) -> bytes:
        tokens = await self._gateway.store.tokens(self._spec.job_id) if self._has_logprobs else ()
        return _encoded(self._events.end(response(self._spec, record, self._begun.model, tokens)))

    def fail(self, failure: Failure) -> bytes:
        return _encoded([self._events.fail(failure)])


def _encoded(events: Iterable[Event]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event)) for event in events
    )
