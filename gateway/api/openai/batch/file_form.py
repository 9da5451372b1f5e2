"""Reads the form of an upload: the file goes chunk by chunk to where it is kept, and is never whole in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from broker_pipeline.errors import InvalidRequestError, MediaTooLargeError
from gateway.batches.file_store import MONTH_S, PartWriter
from gateway.intake.body import CappedStream
from gateway.intake.validation import convert_strings
from gateway.settings import Limits

_CHUNK_BYTES = 256 * 1024
_FIELD_BYTES = 1024
_FORM_BYTES = 64 * 1024
"""Of all that is not the file."""
LIVES_S = (3600, MONTH_S)


class UploadFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What comes with the file."""

    purpose: Literal["batch"]
    anchor: Literal["created_at"] | None = msgspec.field(name="expires_after[anchor]", default=None)
    seconds: Annotated[int, Meta(ge=LIVES_S[0], le=LIVES_S[1])] | None = msgspec.field(
        name="expires_after[seconds]", default=None
    )


@dataclass(frozen=True, slots=True)
class UploadForm:
    """What came with the file, its name, and for how long it is kept."""

    purpose: str
    filename: str
    lives_s: int


async def read_upload(request: web.Request, writer: PartWriter, max_bytes: int, limits: Limits) -> UploadForm:
    """Write the form's file and return the rest, checked.

    Raises `InvalidRequestError`, `MediaTooLargeError`, or `BodyTooSlowError`.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != "multipart/form-data":
        raise InvalidRequestError("send multipart/form-data", field="Content-Type")
    if (request.content_length or 0) > max_bytes + _FORM_BYTES:
        raise _too_large(max_bytes)
    pace = msgspec.structs.replace(limits.pace, is_file=True)
    body = CappedStream(request.content, max_bytes + _FORM_BYTES, pace)
    form = _Form(writer, max_bytes)
    try:
        parser = PushMultipartParser(options.get("boundary", ""), max_segment_count=16)
        async for event in parser.parse_async(body.read, _CHUNK_BYTES):
            if isinstance(event, MultipartSegment):
                form.begin(event)
            elif event:
                await form.add(event)
    except MultipartError as error:
        raise InvalidRequestError(f"the multipart body is malformed: {error}") from error
    return form.checked()


class _Form:
    """The parts of the form that have arrived, and the one that does."""

    def __init__(self, writer: PartWriter, max_bytes: int) -> None:
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._writer = writer
        self._max_bytes = max_bytes
        self._name = ""

    def begin(self, part: MultipartSegment) -> None:
        self._name = part.name or ""
        if self._name == "file" and self._filename is None:
            if "purpose" in self._fields:  # known before the file comes: nobody waits for an upload in vain
                convert_strings(self._fields, UploadFields)
            self._filename = part.filename or "upload"
        elif self._name in ("", "file", *self._fields):
            raise InvalidRequestError("the form has this twice, or a part without a name", field=self._name or None)
        else:
            self._fields[self._name] = ""

    async def add(self, content: bytes | bytearray) -> None:
        if self._name == "file":
            if self._writer.num_bytes + len(content) > self._max_bytes:
                raise _too_large(self._max_bytes)
            await self._writer.write(content)
            return
        self._fields[self._name] += content.decode(errors="replace")
        if len(self._fields[self._name]) > _FIELD_BYTES:
            raise InvalidRequestError("the field is too long", field=self._name)

    def checked(self) -> UploadForm:
        if self._filename is None or not self._writer.num_bytes:
            said = "the form has no file" if self._filename is None else "the file is empty"
            raise InvalidRequestError(said, field="file")
        fields = convert_strings(self._fields, UploadFields)
        if (fields.anchor is None) != (fields.seconds is None):
            missing = "anchor" if fields.anchor is None else "seconds"
            raise InvalidRequestError("give `anchor` and `seconds`, or neither", field=f"expires_after[{missing}]")
        return UploadForm(fields.purpose, self._filename, fields.seconds or MONTH_S)


def _too_large(max_bytes: int) -> MediaTooLargeError:
    return MediaTooLargeError(f"the file has more than {max_bytes} bytes", field="file")
