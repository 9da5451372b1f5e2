"""What the OpenAPI document says of files and batches."""

from __future__ import annotations

from gateway.api.openai.batch.batches import BatchListQuery, BatchRequest
from gateway.api.openai.batch.file_form import LIVES_S, PURPOSES
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
        "purpose": {"enum": list(PURPOSES)},
        "file": {"type": "string", "format": "binary", "description": "JSONL, one request a line."},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": LIVES_S[0], "maximum": LIVES_S[1]},
    },
}
_KEY = {"Idempotency-Key": "Asking again with the same key returns the first batch."}
_UNKNOWN = (404, 503)


def _steering(action: str, summary: str) -> Operation:
    path = f"/v1/batches/{{batch_id}}/{action}"
    return Operation("post", path, f"{action}Batch", summary, {200: BatchObject}, errors=(404, 409, 503))


BATCH_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post",
        "/v1/files",
        "uploadFile",
        "Keep a file.",
        {200: FileObject},
        errors=(400, 408, 413, 429, 503),
        form=_FORM,
    ),
    Operation("get", "/v1/files", "listFiles", "List files.", {200: FileList}, errors=(400, 503), query=FileListQuery),
    Operation("get", "/v1/files/{file_id}", "showFile", "Show a file.", {200: FileObject}, errors=_UNKNOWN),
    Operation(
        "get",
        "/v1/files/{file_id}/content",
        "sendFile",
        "Send a file's bytes.",
        {200: "application/octet-stream"},
        errors=_UNKNOWN,
    ),
    Operation(
        "delete",
        "/v1/files/{file_id}",
        "deleteFile",
        "Delete a file that no batch reads.",
        {200: DeletedFile},
        errors=(404, 409, 503),
    ),
    Operation(
        "post",
        "/v1/batches",
        "createBatch",
        "Have the requests of a file answered.",
        {200: BatchObject},
        errors=(400, 409, 413, 503),
        headers=_KEY,
        body=BatchRequest,
    ),
    Operation(
        "get",
        "/v1/batches",
        "listBatches",
        "List batches, newest first.",
        {200: BatchList},
        errors=(400, 503),
        query=BatchListQuery,
    ),
    Operation("get", "/v1/batches/{batch_id}", "showBatch", "Show a batch.", {200: BatchObject}, errors=_UNKNOWN),
    _steering("cancel", "Stop a batch; what is answered is kept."),
    _steering("pause", "Begin no more requests of a batch."),
    _steering("resume", "Go on with a batch that is paused."),
)
