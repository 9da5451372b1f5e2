"""Reads the form of an upload: the file goes chunk by chunk to where it is kept, and is never whole in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from broker_pipeline.errors import BodyTooSlowError, InvalidRequestError, MediaTooLargeError
from gateway.batches.file_store import MONTH_S, PartWriter
from gateway.intake.body import CappedStream
from gateway.settings import Limits

_CHUNK_BYTES = 256 * 1024
_FIELD_BYTES = 1024
_FORM_BYTES = 64 * 1024
"""Of all that is not the file."""
LIVES_S = (3600, MONTH_S)
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
PURPOSES = ("batch",)


@dataclass(slots=True)
class UploadForm:
    """What came with the file, and its name."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None

    @property
    def lives_s(self) -> int:
        """For how long the file is kept."""
        return lives_s(
            self.fields.get("expires_after[anchor]"), self.fields.get("expires_after[seconds]"), "expires_after"
        )

    def check(self, num_bytes: int) -> None:
        """Raise `InvalidRequestError` for a form that lacks something."""
        if self.filename is None:
            raise InvalidRequestError("the form has no file", field="file")
        if num_bytes == 0:
            raise InvalidRequestError("the file is empty", field="file")
        self.check_purpose()
        _ = self.lives_s

    def check_purpose(self) -> None:
        """Raise `InvalidRequestError` for a purpose that files have not got here."""
        if (purpose := self.fields.get("purpose")) not in PURPOSES:
            said = "the form names no purpose" if purpose is None else f"files for {purpose!r} are of no use here"
            raise InvalidRequestError(f"{said}; give 'batch'", field="purpose")


def lives_s(anchor: str | None, seconds: str | int | None, name: str) -> int:
    """Return for how many seconds a file is kept that has these fields of `expires_after`, if any."""
    if anchor is None and seconds is None:
        return MONTH_S
    if anchor != "created_at":
        raise InvalidRequestError("the anchor is 'created_at'", field=f"{name}[anchor]")
    least, most = LIVES_S
    if not str(seconds).isdecimal() or not least <= int(str(seconds)) <= most:
        raise InvalidRequestError(f"a number of seconds from {least} to {most}", field=f"{name}[seconds]")
    return int(str(seconds))


async def read_upload(request: web.Request, writer: PartWriter, max_bytes: int, limits: Limits) -> UploadForm:
    """Write the form's file and return the rest, checked.

    Raises `InvalidRequestError`, `MediaTooLargeError`, or `BodyTooSlowError` when nothing comes for long.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != "multipart/form-data":
        raise InvalidRequestError("send multipart/form-data", field="Content-Type")
    if (request.content_length or 0) > max_bytes + _FORM_BYTES:
        raise _too_large(max_bytes)
    body = _PatientStream(CappedStream(request.content, max_bytes + _FORM_BYTES), limits.upload_timeout_s)
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
        self._form = UploadForm()
        self._writer = writer
        self._max_bytes = max_bytes
        self._name = ""

    def begin(self, part: MultipartSegment) -> None:
        self._name = part.name or ""
        if self._name == "file" and self._form.filename is None:
            if "purpose" in self._form.fields:  # known before the file comes: nobody waits for an upload in vain
                self._form.check_purpose()
            self._form.filename = part.filename or "upload"
        elif self._name in self._form.fields or self._name not in _FIELDS:
            raise InvalidRequestError("the form has this twice, or has no such field", field=self._name or None)
        else:
            self._form.fields[self._name] = ""

    async def add(self, content: bytes | bytearray) -> None:
        if self._name == "file":
            if self._writer.num_bytes + len(content) > self._max_bytes:
                raise _too_large(self._max_bytes)
            await self._writer.write(content)
            return
        text = self._form.fields[self._name] + content.decode(errors="replace")
        if len(text) > _FIELD_BYTES:
            raise InvalidRequestError("the field is too long", field=self._name)
        self._form.fields[self._name] = text

    def checked(self) -> UploadForm:
        self._form.check(self._writer.num_bytes)
        return self._form


class _PatientStream:
    """A body that may take as long as it likes, as long as something comes."""

    def __init__(self, stream: CappedStream, patience_s: float) -> None:
        self._stream = stream
        self._patience_s = patience_s

    async def read(self, num_bytes: int) -> bytes:
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._stream.read(num_bytes)
        except TimeoutError as error:
            raise BodyTooSlowError(f"nothing came for {self._patience_s:g} s") from error


def _too_large(max_bytes: int) -> MediaTooLargeError:
    return MediaTooLargeError(f"the file has more than {max_bytes} bytes", field="file")
