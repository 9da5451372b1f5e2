"""Routes under `/v1/files`."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta

from gateway.access.caller import current_caller
from gateway.api.connections import reading
from gateway.api.json_answer import json_answer
from gateway.api.openai.batch.file_form import read_upload
from gateway.api.request_facts import HEADER, leave_untimed, request_id
from gateway.batches.file_store import READER_BYTES, WRITER_BYTES
from gateway.batches.records import DeletedFile, FileList
from gateway.intake.request_reader import client_of
from gateway.intake.validation import convert_strings
from gateway.wiring import GATEWAY

log = structlog.get_logger()


class FileListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which files to list; `after` is the `last_id` of an earlier page."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    after: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    purpose: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [
        web.post("/v1/files", upload_file),
        web.get("/v1/files", list_files),
        web.get("/v1/files/{file_id}", show_file),
        web.get("/v1/files/{file_id}/content", send_file, allow_head=False),
        web.delete("/v1/files/{file_id}", delete_file),
    ]


async def upload_file(request: web.Request) -> web.Response:
    """Keep a file: all of it, or nothing."""
    gateway = request.app[GATEWAY]
    leave_untimed()
    async with gateway.file_transfers.hold(WRITER_BYTES, client_of(request)):
        with gateway.metrics.uploads.track_inprogress():
            async with gateway.files.writer() as writer:
                form = await read_upload(request, writer, gateway.settings.batches.max_file_bytes, gateway.limits.own)
                part = await writer.close()
    file = await gateway.files.create(
        part,
        tenant=current_caller().tenant,
        filename=form.filename,
        purpose=form.purpose,
        lives_s=form.lives_s,
    )
    log.info("file_kept", file=file.id, num_bytes=file.bytes)
    return json_answer(file)


async def list_files(request: web.Request) -> web.Response:
    """Show a page of files."""
    query = convert_strings(request.query, FileListQuery)
    files, has_more = await request.app[GATEWAY].files.page(
        current_caller().tenant,
        query.limit,
        after=query.after,
        purpose=query.purpose,
        is_descending=query.order == "desc",
    )
    return json_answer(FileList.of(files, has_more=has_more))


async def show_file(request: web.Request) -> web.Response:
    """Show a file."""
    return json_answer(await request.app[GATEWAY].files.get(request.match_info["file_id"], current_caller().tenant))


async def send_file(request: web.Request) -> web.StreamResponse:
    """Send a file's bytes; a client that reads slowly is waited for, but not for ever."""
    files = request.app[GATEWAY].files
    file = await files.get(request.match_info["file_id"], current_caller().tenant)
    leave_untimed()
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/octet-stream",
            "Content-Length": str(file.bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            HEADER: request_id(),
        }
    )
    room = request.app[GATEWAY].file_transfers.hold(READER_BYTES, client_of(request))
    async with room, aclosing(files.read(file.id)) as chunks:
        async for chunk in chunks:
            async with reading(request, len(chunk)):
                if not response.prepared:
                    await response.prepare(request)  # not before there are bytes: until then it can be an error
                await response.write(chunk)
        async with reading(request, 0):
            await response.write_eof()
    return response


async def delete_file(request: web.Request) -> web.Response:
    """Delete a file."""
    file_id = request.match_info["file_id"]
    await request.app[GATEWAY].files.delete(file_id, current_caller().tenant)
    log.info("file_deleted", file=file_id)
    return json_answer(DeletedFile(id=file_id))
