"""What the OpenAPI document says of OpenAI's API."""

from __future__ import annotations

from gateway.api.openai.batch.operations import BATCH_OPERATIONS
from gateway.api.openai.chat.answers import ChatCompletion
from gateway.api.openai.chat.request import ChatRequest
from gateway.api.openai.models import Model, ModelList
from gateway.api.openai.responses.answers import DeletedResponse, Response
from gateway.api.openai.responses.input_items import InputItemList, InputItemQuery
from gateway.api.openai.responses.request import ResponseRequest
from gateway.api.operation import Operation

JOB_ERRORS = (400, 404, 408, 409, 413, 429, 500, 503)
"""What can come of a request that is a job and is waited for."""
KEY = {"Idempotency-Key": "Asking again with the same key returns the first answer; a lost client stops no job then."}

OPENAI_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a conversation; with `stream` as server-sent events whose data are `ChatChunk`s.",
        {200: ChatCompletion},
        errors=JOB_ERRORS,
        headers=KEY,
        body=ChatRequest,
        takes="place",
        streams=True,
    ),
    Operation(
        "post",
        "/v1/responses",
        "createResponse",
        "Answer one turn of a conversation that can be gone on with; with `stream` as server-sent events.",
        {200: Response},
        errors=JOB_ERRORS,
        headers=KEY,
        body=ResponseRequest,
        takes="place",
        streams=True,
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}",
        "showResponse",
        "Show a response as it stands.",
        {200: Response},
        errors=(400, 404, 503),
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}/input_items",
        "listInputItems",
        "List the items that a response was made of.",
        {200: InputItemList},
        errors=(400, 404, 503),
        query=InputItemQuery,
    ),
    Operation(
        "delete",
        "/v1/responses/{response_id}",
        "deleteResponse",
        "Forget a response that has ended, and its pictures.",
        {200: DeletedResponse},
        errors=(404, 409, 503),
    ),
    Operation(
        "post",
        "/v1/responses/{response_id}/cancel",
        "cancelResponse",
        "Stop a response at its next token.",
        {200: Response},
        errors=(404, 503),
    ),
    Operation("get", "/v1/models", "listModels", "List the models that are served.", {200: ModelList}, errors=(503,)),
    Operation("get", "/v1/models/{model}", "showModel", "Show a model.", {200: Model}, errors=(404, 503)),
    *BATCH_OPERATIONS,
)
