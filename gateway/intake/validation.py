"""Checks bodies, forms and queries against their structs; an `InvalidRequestError` names the field as the user did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.wrong_value import WrongValue

T = TypeVar("T")


def decode_json(body: bytes | bytearray, body_type: type[T], *, prefix: str = "") -> T:
    """Parse and check a JSON body; `prefix` stands before the path of a wrong field."""
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as error:
        raise _wrong_field(error, prefix) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"this is not valid JSON: {error}", field=prefix or None) from error


def convert_strings(fields: Mapping[str, Any], body_type: type[T]) -> T:
    """Check form or query fields, whose values are all text."""
    _refuse_repeated(fields)
    try:
        return msgspec.convert(dict(fields), body_type, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong_field(error, "") from error


def _refuse_repeated(fields: Mapping[str, Any]) -> None:
    """Refuse a query that gives a field twice, as a multidict can."""
    for name, count in Counter(name for name, _ in fields.items()).items():
        if count > 1:
            raise InvalidRequestError("this may be given once", field=name)


def _wrong_field(error: msgspec.ValidationError, prefix: str) -> InvalidRequestError:
    wrong = WrongValue.of(error)
    return InvalidRequestError(wrong.reason, field=_join(prefix, wrong.path) or None)


def _join(prefix: str, path: str) -> str:
    if not prefix or not path:
        return prefix or path
    return f"{prefix}{path}" if path.startswith("[") else f"{prefix}.{path}"
