"""The endpoints that requests of a batch may be for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from broker_pipeline.errors import Failure, InvalidRequestError
from broker_pipeline.messages.jobs import JobRecord, JobSpec, TokenEntry
from gateway.api.error_shapes import openai_error, openai_status
from gateway.api.errors import status_of_failure
from gateway.api.openai.chat.completion import completion
from gateway.api.openai.chat.parse import parse
from gateway.api.openai.responses import parse as responses
from gateway.api.openai.responses.answers import Response
from gateway.api.openai.responses.parse import PREVIOUS, read_request
from gateway.api.openai.responses.response import response
from gateway.batches.endpoint import Endpoint
from gateway.intake.job_draft import JobDraft
from gateway.settings import Limits


def refusal(failure: Failure) -> tuple[int, msgspec.Struct]:
    """Return status and body that a client would have got in place of an answer."""
    status = openai_status(status_of_failure(failure))
    return status, openai_error(failure, status)


def _parse_response(body: bytes, limits: Limits) -> JobDraft:
    request = read_request(body)
    if request.previous_response_id is not None:
        raise InvalidRequestError("a request of a batch goes on with nothing", field=PREVIOUS)
    return responses.parse(request, limits, None)


def _response(spec: JobSpec, record: JobRecord, tokens: Sequence[TokenEntry]) -> Response:
    return response(spec, record, "", tokens)


ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "/v1/chat/completions": Endpoint(parse=parse, answer=completion, refusal=refusal),
        "/v1/responses": Endpoint(parse=_parse_response, answer=_response, refusal=refusal),
    }
)
