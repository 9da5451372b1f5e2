"""Turns what msgspec says about a wrong body into an `InvalidRequestError` that names the field as the user did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from broker_pipeline.errors import InvalidRequestError

T = TypeVar("T")

_PATH = re.compile(r" - at `(?:key` in `)?\$\.?(?P<path>[^`]*)`$")
_NAMED = re.compile(r"(?:unknown|required) field `(?P<name>[^`]+)`")
_INVALID_VALUE = re.compile(r"^Invalid value '(?P<value>.*)'$")


def decode_json(body: bytes | bytearray, body_type: type[T], *, prefix: str = "") -> T:
    """Parse and check a JSON body; `prefix` stands before the path of a wrong field."""
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as error:
        raise wrong_field(error, prefix) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}", field=prefix or None) from error


def convert_strings(fields: Mapping[str, Any], body_type: type[T], *, prefix: str = "") -> T:
    """Check form or query fields, whose values are all text."""
    try:
        return msgspec.convert(dict(fields), body_type, strict=False)
    except msgspec.ValidationError as error:
        raise wrong_field(error, prefix) from error


def wrong_field(error: msgspec.ValidationError, prefix: str = "") -> InvalidRequestError:
    """Say the same as `error` with the path as a user would write it: `sampling.temperature`, `images[0]`."""
    text = str(error)
    path = ""
    if match := _PATH.search(text):
        path, text = match["path"].removesuffix("[...]"), text[: match.start()]
    if named := _NAMED.search(text):
        path = f"{path}.{named['name']}" if path else named["name"]
    return InvalidRequestError(_readable(text), field=_join(prefix, path) or None)


def _join(prefix: str, path: str) -> str:
    if not prefix or not path:
        return prefix or path
    return f"{prefix}{path}" if path.startswith("[") else f"{prefix}.{path}"


def _readable(text: str) -> str:
    text = _INVALID_VALUE.sub(r"this does not allow the value '\g<value>'", text)
    return text[:1].lower() + text[1:]
