"""Reads a `multipart/form-data` body part by part.

image     a file (JPEG, PNG, …), or the text of a URL; may be repeated, the order counts
video     a video file, or the text of a URL; may be repeated, and stands behind the images
prompt    text
metadata  a JSON object
request   a JSON object as `POST /v1/jobs` takes it, in place of `prompt`, `metadata` and sampling fields
min_pixels, max_pixels  numbers
NAME      a sampling field by its own name: temperature, max_tokens, …; lists are repeated, objects are JSON
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import msgspec
from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from broker_pipeline.errors import InvalidRequestError, MediaTooLargeError
from broker_pipeline.messages.sampling import SamplingParams
from gateway.intake.body import CappedStream
from gateway.intake.job_draft import Link, Source, Upload
from gateway.intake.validation import convert_strings, decode_json
from gateway.schemas import JobRequest, Metadata
from gateway.settings import Limits

IMAGE_FIELD, VIDEO_FIELD = "image", "video"
MAX_PARTS = 1200
_CHUNK_BYTES = 64 * 1024
_SAMPLING_FIELDS = frozenset(SamplingParams.__struct_fields__)
BOUNDS: tuple[str, ...] = ("min_pixels", "max_pixels")
_LISTS = frozenset({"stop", "stop_token_ids", "bad_words"})
_OBJECTS = frozenset({"logit_bias", "repetition_detection"})
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
    stream = CappedStream(request.content, limits.max_body_bytes)
    try:
        return await _read_parts(MultipartReader(request.headers, cast("StreamReader", stream)), limits)
    except (ValueError, RuntimeError, HttpProcessingError) as error:
        raise InvalidRequestError(f"the multipart body is malformed: {error}") from error


async def _read_parts(reader: MultipartReader, limits: Limits) -> Form:
    fields: dict[str, list[str]] = {}
    media: list[Source] = []
    num_parts = 0
    while (part := await reader.next()) is not None:
        num_parts += 1
        if num_parts > MAX_PARTS or not isinstance(part, BodyPartReader):
            raise InvalidRequestError("the form has too many or nested parts")
        name = _check_part(part)
        if name in {IMAGE_FIELD, VIDEO_FIELD}:
            number = sum(source.field.startswith(name) for source in media)
            media.append(await _read_medium(part, f"{name}[{number}]", limits, is_video=name == VIDEO_FIELD))
        else:
            fields.setdefault(name, []).append(await _read_text(part, name, limits))
    return Form(fields, tuple(sorted(media, key=lambda source: source.is_video)))


def _check_part(part: BodyPartReader) -> str:
    if not part.name:
        raise InvalidRequestError("a part of the form has no name")
    encoding = part.headers.get("Content-Transfer-Encoding", "").lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise InvalidRequestError(f"Content-Transfer-Encoding {encoding!r} is not supported", field=part.name)
    return part.name


async def _read_medium(part: BodyPartReader, field: str, limits: Limits, *, is_video: bool) -> Source:
    """Read a file, or a URL: that is what a part without file name and with no type but text is."""
    content_type = part.headers.get("Content-Type", "text/plain").partition(";")[0].strip().lower()
    if part.filename is None and content_type == "text/plain":
        return Link(field, await _read_text(part, field, limits), is_video)
    max_bytes = limits.pictures.max_video_bytes if is_video else limits.pictures.max_bytes
    return Upload(field, await _read_part(part, max_bytes, field), is_video)


async def _read_text(part: BodyPartReader, field: str, limits: Limits) -> str:
    content = await _read_part(part, limits.max_body_bytes, field)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError("the text is not UTF-8", field=field) from error


async def _read_part(part: BodyPartReader, max_bytes: int, field: str) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise MediaTooLargeError(f"the file has more than {max_bytes} bytes", field=field)
        chunks.append(chunk)
    return b"".join(chunks)


def sampling_path(form: Form) -> str:
    """Return what stands before the name of a sampling field in this form."""
    return "request.sampling." if "request" in form.fields else ""


def job_request(form: Form) -> JobRequest:
    """Turn a form's text fields into a request. Raises `InvalidRequestError` naming the field as the form has it."""
    if "request" in form.fields:
        return _whole_request(form.fields)
    fields = dict(form.fields)
    prompt = fields.pop("prompt", None)
    metadata = fields.pop("metadata", None)
    bounds = {name: _single(name, fields.pop(name)) for name in BOUNDS if name in fields}
    return msgspec.structs.replace(
        convert_strings(bounds, JobRequest),
        prompt=msgspec.UNSET if prompt is None else _single("prompt", prompt),
        sampling=_sampling(fields),
        metadata={} if metadata is None else _metadata(_single("metadata", metadata)),
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
