"""The OpenAPI 3.1 document: schemas from the structs that check bodies, operations from the table below.

A test holds the table against the routes, so that the document cannot forget one.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec

from broker_pipeline import __version__
from broker_pipeline.messages.gateway import ErrorBody, Health, Readiness
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.pictures.formats import DECODED_FORMATS
from gateway.api.error_shapes import OpenAIErrorBody, is_openai
from gateway.api.native.events import EVENT_ID, LAST_EVENT_ID_HEADER
from gateway.api.native.operations import NATIVE_OPERATIONS
from gateway.api.openai.operations import OPENAI_OPERATIONS
from gateway.api.operation import Operation
from gateway.intake.multipart import IMAGE_FIELD, TEXTS, VIDEO_FIELD, VISUAL
from gateway.intake.request_reader import IDEMPOTENCY_HEADER, IDEMPOTENCY_KEY
from gateway.schemas import JobRequest

_REF = "#/components/schemas/{name}"
_KEY = "key"
_KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key that `broker-pipeline keys create` made. Scopes: `submit`, `read`, `operate`, which is both "
    "of these for everybody's jobs, and more. A gateway on the loopback interface without keys asks for none, but "
    "for `operate`.",
}
_PATTERNS = {
    IDEMPOTENCY_HEADER: f"^{IDEMPOTENCY_KEY.pattern}$",
    LAST_EVENT_ID_HEADER: f"^{EVENT_ID.pattern}$",
}
"""What the headers of operations have to look like."""
_ERRORS = {
    400: "A field is wrong; `error.field` names it.",
    401: "No key, or one that is not known (any more).",
    403: "The key does not allow this, or a page of another site asked.",
    404: "No such job, live worker, model, file or batch.",
    408: "The body did not arrive in time.",
    409: "The status of the job, file or batch does not allow this, or the idempotency key belongs to another request.",
    413: "The body or a file is too large.",
    422: "An image cannot be used, or is gone.",
    429: "The queue is full, or too much is under way; `Retry-After` says when to try again.",
    500: "The job failed, or the gateway did.",
    503: "NATS or Redis does not answer, or a part was lost; try again.",
}


OPERATIONS: tuple[Operation, ...] = (
    *NATIVE_OPERATIONS,
    Operation("get", "/healthz", "showHealth", "Say that the process lives.", {200: Health}, needs="nothing"),
    Operation(
        "get",
        "/readyz",
        "showReadiness",
        "Say whether accepted jobs will be run now, and to operators why not.",
        {200: Readiness, 503: Readiness},
        needs="nothing",
    ),
    Operation("get", "/metrics", "showMetrics", "Show metrics for Prometheus.", {200: "text/plain"}),
    Operation("get", "/openapi.json", "showOpenapi", "Show this document.", {200: "application/json"}, needs="nothing"),
    Operation("get", "/", "showPage", "Show the page for people.", {200: "text/html"}, needs="nothing"),
    Operation(
        "get", "/page/{name}", "showPageFile", "Show a file of the page.", {200: "*/*"}, errors=(404,), needs="nothing"
    ),
    *OPENAI_OPERATIONS,
)


@cache
def openapi_document() -> dict[str, Any]:
    """Return the document."""
    answers = {body for operation in OPERATIONS for body in operation.answers.values() if not isinstance(body, str)}
    bodies = {operation.body for operation in OPERATIONS if operation.body is not None}
    described = [JobRequest, JobEvent, ErrorBody, OpenAIErrorBody, *answers, *bodies]
    _, schemas = msgspec.json.schema_components(described, ref_template=_REF)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "broker-pipeline",
            "version": __version__,
            "description": "Captions images, and answers about them, with one model cut over several hosts.",
        },
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": {_KEY: _KEY_SCHEME}},
    }


def _operation(operation: Operation) -> dict[str, Any]:
    errors = sorted({*operation.errors, *((401, 403, 503) if operation.scope else ())})
    described: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation), *_query_parameters(operation), *_header_parameters(operation)],
        "responses": {
            **{str(status): _answer(body) for status, body in operation.answers.items()},
            **{str(status): _error(status, operation.path) for status in errors},
        },
        "security": [{_KEY: [] if operation.scope == "any" else [operation.scope]}] if operation.scope else [],
    }
    if operation.streams:
        described["responses"]["200"]["content"]["text/event-stream"] = {}
    if operation.form is not None:
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": operation.form}}}
    if operation.has_job_body:
        described["requestBody"] = {"required": True, "content": _job_body()}
    elif operation.body is not None:
        content = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(body: type[msgspec.Struct] | str) -> dict[str, Any]:
    if isinstance(body, str):
        return {"description": "Success.", "content": {body: {}}}
    return {"description": _first_line(body), "content": {"application/json": {"schema": _ref(body)}}}


def _error(status: int, path: str) -> dict[str, Any]:
    answer = _answer(OpenAIErrorBody if is_openai(path) else ErrorBody) | {"description": _ERRORS[status]}
    if status in (429, 503):
        seconds = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        answer["headers"] = {"Retry-After": seconds}
    return answer


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", operation.path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    _, schemas = msgspec.json.schema_components([operation.query], ref_template=_REF)
    properties = schemas[operation.query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _header_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string", "pattern": _PATTERNS[name]}}
        for name, text in operation.headers.items()
    ]


def _job_body() -> dict[str, Any]:
    return {"application/json": {"schema": _ref(JobRequest)}, "multipart/form-data": {"schema": _form_schema()}}


def _form_schema() -> dict[str, Any]:
    """Describe the form by hand: its fields are those of `JobRequest` and `SamplingParams`, laid flat."""
    _, schemas = msgspec.json.schema_components([SamplingParams, JobRequest], ref_template=_REF)
    image = {
        "type": "string",
        "format": "binary",
        "description": f"{', '.join(DECODED_FORMATS)}; or the text of a URL.",
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            IMAGE_FIELD: {"type": "array", "items": image},
            VIDEO_FIELD: {"type": "array", "items": image | {"description": "A video file; or the text of a URL."}},
            **{name: schemas["JobRequest"]["properties"][name] for name in (*TEXTS, *VISUAL)},
            "metadata": {"type": "string", "description": "A JSON object."},
            "request": {"type": "string", "description": "A `JobRequest` as JSON, in place of all but the images."},
            **schemas["SamplingParams"]["properties"],
        },
    }


def _ref(body: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=body.__name__)}


def _first_line(body: type[msgspec.Struct]) -> str:
    return (body.__doc__ or body.__name__).strip().partition("\n")[0]
