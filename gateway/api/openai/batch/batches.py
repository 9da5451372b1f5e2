"""Routes under `/v1/batches`."""

from __future__ import annotations

import re
import time
from typing import Annotated, Literal, cast, get_args

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta

from broker_pipeline.errors import FileUnknownError, InvalidRequestError
from gateway.access.caller import current_caller
from gateway.api.json_answer import json_answer
from gateway.api.openai.batch.endpoints import ENDPOINTS
from gateway.api.openai.batch.file_form import LIVES_S
from gateway.batches.batch_store import BatchOrder, Steering
from gateway.batches.file_store import MONTH_S
from gateway.batches.records import Batch, BatchList
from gateway.intake.body import read_body
from gateway.intake.request_reader import idempotency_key
from gateway.intake.validation import convert_strings, decode_json
from gateway.schemas import Metadata
from gateway.wiring import GATEWAY

_BODY_BYTES = 64 * 1024
_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}

log = structlog.get_logger()


class OutputExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """For how long output files are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=LIVES_S[0], le=LIVES_S[1])]


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A batch."""

    input_file_id: Annotated[str, Meta(min_length=1, max_length=128)]
    endpoint: Annotated[str, Meta(extra_json_schema={"enum": list(ENDPOINTS)})]
    completion_window: Annotated[
        str,
        Meta(
            max_length=16,
            description="A number and s, m, h or d, up to 30d",
            extra_json_schema={"pattern": f"^{_WINDOW.pattern}$"},
        ),
    ]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None
    priority: Annotated[int, Meta(ge=-100, le=100, description="Batches with a lower one begin earlier")] = 0


class BatchListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which batches to list, the newest first; `after` is the `last_id` of an earlier page."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    after: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    tenant: Annotated[str, Meta(max_length=128, description="Whose, for operators; otherwise one's own")] | None = None


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [
        web.post("/v1/batches", create_batch),
        web.get("/v1/batches", list_batches),
        web.get("/v1/batches/{batch_id}", show_batch),
        *(web.post(f"/v1/batches/{{batch_id}}/{action}", steer_batch) for action in get_args(Steering)),
    ]


async def create_batch(request: web.Request) -> web.Response:
    """Take a batch, or find the one that was asked for before."""
    gateway = request.app[GATEWAY]
    asked = decode_json(await read_body(request, _BODY_BYTES, request.app[GATEWAY].settings.limits.pace), BatchRequest)
    caller = current_caller()
    if asked.endpoint not in ENDPOINTS:
        raise InvalidRequestError(f"batches are for {', '.join(ENDPOINTS)}", field="endpoint")
    window_s = _window_s(asked.completion_window)
    try:
        file = await gateway.files.get(asked.input_file_id, caller.tenant)
    except FileUnknownError as error:
        raise InvalidRequestError(error.message, field="input_file_id") from error
    if file.purpose != "batch":
        raise InvalidRequestError(f"the purpose of this file is {file.purpose!r}, not 'batch'", field="input_file_id")
    order = BatchOrder(
        caller=caller,
        input_file_id=file.id,
        endpoint=asked.endpoint,
        completion_window=asked.completion_window,
        window_s=window_s,
        metadata=asked.metadata,
        priority=asked.priority,
        output_lives_s=asked.output_expires_after.seconds if asked.output_expires_after else MONTH_S,
        idempotency_key=idempotency_key(request),
    )
    batch = await gateway.batches.create(order)
    gateway.batch_called.set()
    log.info("batch_taken", batch=batch.id, file=file.id)
    return _answer(batch)


async def list_batches(request: web.Request) -> web.Response:
    """Show a page of batches, newest first."""
    query = convert_strings(request.query, BatchListQuery)
    caller = current_caller()
    tenant = query.tenant if query.tenant is not None and caller.may_see(query.tenant) else caller.tenant
    batches, has_more = await request.app[GATEWAY].batches.page(tenant, query.limit, query.after)
    return json_answer(BatchList.of([batch.shown(time.time()) for batch in batches], has_more=has_more))


async def show_batch(request: web.Request) -> web.Response:
    """Show a batch."""
    return _answer(
        await request.app[GATEWAY].batches.get(request.match_info["batch_id"], current_caller().listed_tenant or None)
    )


async def steer_batch(request: web.Request) -> web.Response:
    """Cancel, pause or resume a batch."""
    gateway = request.app[GATEWAY]
    batch_id, action = request.match_info["batch_id"], request.path.rpartition("/")[2]
    batch = await gateway.batches.steer(batch_id, current_caller().listed_tenant or None, cast("Steering", action))
    gateway.batch_called.set()
    log.info("batch_steered", batch=batch_id, action=action)
    return _answer(batch)


def _answer(batch: Batch) -> web.Response:
    return json_answer(batch.shown(time.time()))


def _window_s(text: str) -> int:
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    if not 0 < seconds <= MONTH_S:
        raise InvalidRequestError("a number and s, m, h or d, up to 30d, such as '24h'", field="completion_window")
    return seconds
