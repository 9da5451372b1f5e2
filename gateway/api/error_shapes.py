"""How an error looks in an answer: in our own shape on our own paths, in OpenAI's on all others below `/v1`.

{"error": {"code": "invalid_request", "message": "…", "field": "sampling.temperature",
           "retryable": false, "request_id": "…"}}
{"error": {"message": "…", "type": "invalid_request_error", "param": "temperature", "code": "invalid_request"}}
"""

from __future__ import annotations

import msgspec

from broker_pipeline.errors import Failure, PromptTooLongError, QueueFullError, RateLimitError, UnauthenticatedError
from broker_pipeline.messages.gateway import ErrorBody, ErrorDetail

_NATIVE = ("/v1/jobs", "/v1/workers", "/v1/status", "/v1/rates", "/v1/caller")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    PromptTooLongError.code: "context_length_exceeded",
    QueueFullError.code: "rate_limit_exceeded",
    RateLimitError.code: "rate_limit_exceeded",
    UnauthenticatedError.code: "invalid_api_key",
}
"""What clients of OpenAI look for by name."""


class OpenAIError(msgspec.Struct, frozen=True, kw_only=True):
    """An error as OpenAI's clients read it: `code` is stable, `param` names the field that is to blame."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is an error, on OpenAI's paths."""

    error: OpenAIError


def is_openai(path: str) -> bool:
    """Whether who asks under this path expects OpenAI's shapes."""
    return path.startswith("/v1/") and not path.startswith(_NATIVE)


def openai_status(status: int) -> int:
    """Return the status on OpenAI's paths: a picture or video that cannot be used is 400 there, as any wrong value."""
    return 400 if status == 422 else status


def native_error(failure: Failure, request_id: str) -> ErrorBody:
    """Return our own shape."""
    return ErrorBody(
        error=ErrorDetail(
            code=failure.code,
            message=failure.message,
            field=failure.field,
            retryable=failure.retryable,
            request_id=request_id,
        )
    )


def openai_error(failure: Failure, status: int) -> OpenAIErrorBody:
    """Return OpenAI's shape; `status` is the HTTP status that it has, or would have."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = failure.field and failure.field.removeprefix("sampling.")
    code = _CODES.get(failure.code, failure.code)
    return OpenAIErrorBody(error=OpenAIError(message=failure.message, type=kind, param=param, code=code))
