"""What the OpenAPI document says of files and batches."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.openai.batch.batches import BatchListQuery, BatchRequest
from gateway.api.openai.batch.file_form import LIVES_S
from gateway.api.openai.batch.files import FileListQuery
from gateway.api.operation import Operation
from gateway.batches.records import BatchList, BatchObject, DeletedFile, FileList, FileObject

_FORM = {
    "type": "object",
    "required": ["purpose", "file"],
    "additionalProperties": False,
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
    "properties": {
        "purpose": {"const": "batch"},
        "file": {"type": "string", "format": "binary", "description": "JSONL, one request a line."},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": LIVES_S[0], "maximum": LIVES_S[1]},
    },
}
_KEY = {"Idempotency-Key": "Asking again with the same key returns the first batch."}
_CANNOT = (404, 409, 503)


def _operation(
    path: str, name: str, summary: str, answer: type[msgspec.Struct] | str, errors: tuple[int, ...], **more: Any
) -> Operation:
    method, _, path = path.partition(" ")
    return Operation(method, f"/v1/{path}", name, summary, {200: answer}, errors=errors, **more)


BATCH_OPERATIONS: tuple[Operation, ...] = (
    _operation(
        "post files", "uploadFile", "Keep a file.", FileObject, (400, 408, 413, 429, 503), form=_FORM, takes="request"
    ),
    _operation("get files", "listFiles", "List files.", FileList, (400, 503), query=FileListQuery),
    _operation("get files/{file_id}", "showFile", "Show a file.", FileObject, (404, 503)),
    _operation(
        "get files/{file_id}/content", "sendFile", "Send a file's bytes.", "application/octet-stream", (404, 503)
    ),
    _operation("delete files/{file_id}", "deleteFile", "Delete a file that no batch reads.", DeletedFile, _CANNOT),
    _operation(
        "post batches",
        "createBatch",
        "Have the requests of a file answered.",
        BatchObject,
        (400, 409, 413, 429, 503),
        takes="request",
        headers=_KEY,
        body=BatchRequest,
    ),
    _operation(
        "get batches", "listBatches", "List batches, newest first.", BatchList, (400, 503), query=BatchListQuery
    ),
    _operation("get batches/{batch_id}", "showBatch", "Show a batch.", BatchObject, (404, 503)),
    _operation(
        "post batches/{batch_id}/cancel", "cancelBatch", "Stop a batch; what is answered is kept.", BatchObject, _CANNOT
    ),
    _operation(
        "post batches/{batch_id}/pause", "pauseBatch", "Begin no more requests of a batch.", BatchObject, _CANNOT
    ),
    _operation(
        "post batches/{batch_id}/resume", "resumeBatch", "Go on with a batch that is paused.", BatchObject, _CANNOT
    ),
)
