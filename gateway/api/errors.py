"""Every exception becomes an answer: which error is which status. How it looks: `error_shapes`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import ClientPayloadError, web

from broker_pipeline.errors import (
    BatchNotFoundError,
    BatchStateError,
    BodyTooLargeError,
    BodyTooSlowError,
    CancelledJobError,
    DeadlineExceededError,
    Failure,
    FileInUseError,
    FileUnknownError,
    GarbledStateError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobNotFoundError,
    JobStateError,
    MediaError,
    MediaTooLargeError,
    ModelNotFoundError,
    NoRouteError,
    NothingLeftError,
    PayloadTooLargeError,
    PermissionDeniedError,
    PipelineError,
    QueueFullError,
    ShuttingDownError,
    StateError,
    TransportError,
    UnauthenticatedError,
    WorkerNotFoundError,
)
from gateway.api.error_shapes import native_error, openai_error, openai_status
from gateway.api.json_answer import json_answer
from gateway.api.request_facts import current, request_id

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The first class that fits decides, so the narrower ones stand first.
STATUSES: tuple[tuple[type[PipelineError], int], ...] = (
    (BodyTooLargeError, 413),
    (BodyTooSlowError, 408),
    (MediaTooLargeError, 413),
    (IdempotencyConflictError, 409),
    (MediaError, 422),
    (InvalidRequestError, 400),
    (JobNotFoundError, 404),
    (FileUnknownError, 404),
    (BatchNotFoundError, 404),
    (WorkerNotFoundError, 404),
    (ModelNotFoundError, 404),
    (NothingLeftError, 400),
    (NoRouteError, 503),
    (ShuttingDownError, 503),
    (CancelledJobError, 409),
    (JobStateError, 409),
    (FileInUseError, 409),
    (BatchStateError, 409),
    (UnauthenticatedError, 401),
    (PermissionDeniedError, 403),
    (QueueFullError, 429),
    (PayloadTooLargeError, 413),
    (TransportError, 503),
    (GarbledStateError, 500),
    (StateError, 503),
    (DeadlineExceededError, 504),
)
_FAILED, _OVERLOADED = 500, 503
_CLIENT_CLOSED_REQUEST = 499
_UNAVAILABLE_RETRY_AFTER_S = 1.0
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 417: "expectation_failed"}


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into an answer of the one shape."""
    try:
        return await handler(request)
    except PipelineError as error:
        return error_answer(error)
    except web.HTTPException as error:
        return _plain_http_error(request, error)
    except web.RequestPayloadError as error:
        failure = Failure("invalid_request", f"the body is not what its headers say: {error}", "Content-Encoding")
        return failure_answer(400, failure, {})
    except (ConnectionError, ClientPayloadError, web.PayloadAccessError) as error:
        log.info("client_gone", request_id=request_id(), reason=str(error) or type(error).__name__)
        return web.Response(status=_CLIENT_CLOSED_REQUEST)
    except Exception:  # the last line of defence: logged in full, answered without details
        log.exception("request_crashed", request_id=request_id(), path=request.path)
        return failure_answer(500, Failure("internal", "an error inside the gateway; its log has the request id"), {})


def error_answer(error: PipelineError) -> web.Response:
    """Build the answer for an error of ours."""
    status = status_of(error)
    if status >= 500:
        log.warning("request_failed", request_id=request_id(), code=error.code, message=error.message)
    return failure_answer(status, error.to_failure(), headers_of(error))


def status_of(error: PipelineError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def job_failure_answer(failure: Failure) -> web.Response:
    """Build the answer for a job that has failed."""
    status = status_of_failure(failure)
    return failure_answer(status, failure, _unavailable_headers(status))


def status_of_failure(failure: Failure) -> int:
    """Return the HTTP status of a job's failure, as of the error that it was."""
    named = next((status for kind, status in STATUSES if failure.code in _codes_of(kind)), None)
    return named or (_OVERLOADED if failure.retryable else _FAILED)


def _codes_of(kind: type[PipelineError]) -> frozenset[str]:
    return frozenset({kind.code}).union(*map(_codes_of, kind.__subclasses__()))


def headers_of(error: PipelineError) -> dict[str, str]:
    """Return the headers that say what to do about an error, whatever shape its answer has."""
    status = status_of(error)
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, QueueFullError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return _unavailable_headers(status)


def _unavailable_headers(status: int) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(_UNAVAILABLE_RETRY_AFTER_S))} if status == _OVERLOADED else {}


def _plain_http_error(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    """Give what aiohttp itself refuses (unknown path, wrong method) the same shape."""
    if error.status < 400:
        raise error
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    code = _HTTP_CODES.get(error.status, "invalid_request")
    message = f"{request.method} {request.path}: {error.reason}; /openapi.json lists what there is"
    return failure_answer(error.status, Failure(code, message), headers)


def failure_answer(status: int, failure: Failure, headers: dict[str, str]) -> web.Response:
    """Build the answer, in the shape that its path has."""
    facts = current()
    if not facts.is_openai:
        return json_answer(native_error(failure, facts.name), status=status, headers=headers)
    status = openai_status(status)
    return json_answer(openai_error(failure, status), status=status, headers=headers)
