"""Values of any kind as UTF-8 and JSON that every reader takes."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping

_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""What JSON leaves as it is and some readers take for the end of a line."""


def valid(text: str) -> str:
    """Return a text without lone surrogates: `\\xNN` stands for bytes of names that are no UTF-8, as in the log."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def plain(value: object) -> object:  # noqa: PLR0911 - one for each kind
    """Return a value as JSON has it: bytes as base64, no NaN, and a text for what JSON does not know."""
    if isinstance(value, str):
        return valid(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {valid(str(name)): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    return valid(str(value))


def json_text(value: object) -> str:
    """Return a value as JSON in one line, whatever a reader takes for the end of one."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)
