"""Reads a `multipart/form-data` body part by part.

image     a file (JPEG, PNG, …), or the text of a URL; may be repeated, the order counts
video     a video file, or the text of a URL; may be repeated, and stands behind the images
prompt    text
system    text
metadata  a JSON object
request   a JSON object as `POST /v1/jobs` takes it, in place of `prompt`, `system`, `metadata` and sampling fields
min_pixels, max_pixels, fps, max_frames  numbers
priority  interactive or batch
NAME      a sampling field by its own name: temperature, max_tokens, …; lists are repeated, objects are JSON
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import msgspec
from aiohttp import web
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from broker_pipeline.errors import InvalidRequestError, MediaTooLargeError
from broker_pipeline.messages.sampling import SamplingParams
from gateway.intake.body import CappedStream
from gateway.intake.job_draft import Link, Source, Upload
from gateway.intake.validation import convert_strings, decode_json
from gateway.schemas import JobRequest, Metadata
from gateway.settings import Limits

IMAGE_FIELD, VIDEO_FIELD = "image", "video"
MAX_PARTS = 1200
_CHUNK_BYTES = 256 * 1024
_HEADER_BYTES = 8 * 1024
_SAMPLING_FIELDS = frozenset(SamplingParams.__struct_fields__)
TEXTS = ("prompt", "system")
VISUAL: tuple[str, ...] = ("min_pixels", "max_pixels", "fps", "max_frames")
_LISTS = frozenset({"stop", "stop_token_ids", "bad_words"})
_OBJECTS = frozenset({"logit_bias", "repetition_detection", "structured_outputs"})
_PLAIN_ENCODINGS = frozenset({"", "binary", "8bit", "7bit"})


@dataclass(frozen=True, slots=True)
class Form:
    """A form as it was sent: text fields by name, images in their order, then videos in theirs."""

    fields: dict[str, list[str]]
    media: tuple[Source, ...]


async def read_form(request: web.Request, limits: Limits) -> Form:
    """Read a multipart body under the body limit, and each file under the image limit.

    Raises `InvalidRequestError`, `BodyTooLargeError` or `MediaTooLargeError`.
    """
    _, options = parse_options_header(request.headers["Content-Type"])
    parts = _Parts(limits)
    try:
        parser = PushMultipartParser(
            options.get("boundary", ""), max_segment_count=MAX_PARTS, max_header_size=_HEADER_BYTES
        )
        body = CappedStream(request.content, limits.max_body_bytes, limits.pace)
        async for event in parser.parse_async(body.read, _CHUNK_BYTES):
            if isinstance(event, MultipartSegment):
                parts.begin(event)
            elif event:
                parts.add(event)
            else:
                parts.end()
    except MultipartError as error:
        raise InvalidRequestError(f"the multipart body is malformed: {error}") from error
    return parts.form()


class _Parts:
    """The parts that have arrived, and the one that does."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fields: dict[str, list[str]] = {}
        self._media: dict[str, list[Source]] = {IMAGE_FIELD: [], VIDEO_FIELD: []}
        self._segment: MultipartSegment
        self._field = ""
        self._max_bytes = 0
        self._chunks: list[bytes] = []
        self._num_bytes = 0

    def begin(self, segment: MultipartSegment) -> None:
        """Take note of a part's headers."""
        name = _check_part(segment)
        media = self._media.get(name)
        self._segment, self._chunks, self._num_bytes = segment, [], 0
        self._field = name if media is None else f"{name}[{len(media)}]"
        self._max_bytes = self._limits.max_body_bytes
        if media is not None and not _is_text(segment):
            pictures = self._limits.pictures
            self._max_bytes = pictures.max_video_bytes if name == VIDEO_FIELD else pictures.max_bytes

    def add(self, chunk: bytes) -> None:
        """Take some bytes of the part."""
        self._num_bytes += len(chunk)
        if self._num_bytes > self._max_bytes:
            raise MediaTooLargeError(f"the file has more than {self._max_bytes} bytes", field=self._field)
        self._chunks.append(chunk)

    def end(self) -> None:
        """Put the part where it belongs: a file, or a URL, which has no file name and no type but text."""
        name, content = str(self._segment.name), b"".join(self._chunks)
        if (media := self._media.get(name)) is None:
            self._fields.setdefault(name, []).append(_text(content, self._field))
        elif _is_text(self._segment):
            media.append(Link(self._field, _text(content, self._field), name == VIDEO_FIELD))
        else:
            media.append(Upload(self._field, content, name == VIDEO_FIELD))

    def form(self) -> Form:
        """Return everything."""
        return Form(self._fields, (*self._media[IMAGE_FIELD], *self._media[VIDEO_FIELD]))


def _check_part(part: MultipartSegment) -> str:
    if not part.name:
        raise InvalidRequestError("a part of the form has no name")
    if (part.content_type or "").startswith("multipart/"):
        raise InvalidRequestError("the form has nested parts", field=part.name)
    encoding = part.header("Content-Transfer-Encoding", "").lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise InvalidRequestError(f"Content-Transfer-Encoding {encoding!r} is not supported", field=part.name)
    return str(part.name)


def _is_text(part: MultipartSegment) -> bool:
    return part.filename is None and part.content_type in {None, "text/plain"}


def _text(content: bytes, field: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError("the text is not UTF-8", field=field) from error


def sampling_path(form: Form) -> str:
    """Return what stands before the name of a sampling field in this form."""
    return "request.sampling." if "request" in form.fields else ""


def job_request(form: Form) -> JobRequest:
    """Turn a form's text fields into a request. Raises `InvalidRequestError` naming the field as the form has it."""
    if "request" in form.fields:
        return _whole_request(form.fields)
    fields = dict(form.fields)
    texts = {name: _single(name, fields.pop(name)) for name in TEXTS if name in fields}
    metadata = fields.pop("metadata", None)
    plain = {name: _single(name, fields.pop(name)) for name in (*VISUAL, "priority") if name in fields}
    return msgspec.structs.replace(
        convert_strings(plain, JobRequest),
        **texts,
        sampling=_sampling(fields),
        metadata=None if metadata is None else _metadata(_single("metadata", metadata)),
    )


def _whole_request(fields: dict[str, list[str]]) -> JobRequest:
    for name in fields:
        if name != "request":
            raise InvalidRequestError("`request` holds everything but the images; put this into it", field=name)
    return decode_json(_single("request", fields["request"]).encode(), JobRequest, prefix="request")


def _sampling(fields: dict[str, list[str]]) -> SamplingParams:
    values: dict[str, Any] = {}
    for name, texts in fields.items():
        if name not in _SAMPLING_FIELDS:
            raise InvalidRequestError(f"the form has no field `{name}`", field=name)
        values[name] = texts if name in _LISTS else _single(name, texts)
        if name in _OBJECTS:
            values[name] = decode_json(values[name].encode(), dict[str, Any], prefix=name)
    return convert_strings(values, SamplingParams)


def _metadata(text: str) -> dict[str, str]:
    return decode_json(text.encode(), cast("type[dict[str, str]]", Metadata), prefix="metadata")


def _single(name: str, texts: list[str]) -> str:
    if len(texts) > 1:
        raise InvalidRequestError("this field may be given once", field=name)
    return texts[0]
