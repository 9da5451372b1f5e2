"""What is wrong with a value that a struct refused, and where: said as whoever gave the value wrote it.

Everything that people give goes through here: bodies, form fields, queries and flags. What they are called on the way
in is for the caller to say; a path here is the struct's own, such as `sampling.temperature` or `images[0]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import msgspec

_MOST_SAID = 300
_PATH = re.compile(r" - at `(?:key` in `)?\$\.?(?P<path>[^`]*)`$")
_NAMED = re.compile(r"(?:unknown|required|Invalid) field `(?P<name>[^`]+)`")
_INVALID_FIELD = re.compile(r"^Invalid field `[^`]+`: ")
_INVALID_VALUE = re.compile(r"^Invalid value '(?P<value>.*)'$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WrongValue:
    """`path` is empty where the whole is wrong."""

    path: str
    reason: str

    @classmethod
    def of(cls, error: msgspec.ValidationError) -> Self:
        """Read msgspec's message; a struct's own `ValueError` names a field as "Invalid field `name`: why"."""
        text, path = _cut(str(error)), ""
        if match := _PATH.search(text):
            path, text = match["path"].removesuffix("[...]"), text[: match.start()]
        if named := _NAMED.search(text):
            path = f"{path}.{named['name']}" if path else named["name"]
        return cls(path, _readable(text))


def _cut(text: str) -> str:
    """Leave out the middle of what somebody gave that is too long to be said to anybody."""
    return text if len(text) <= 2 * _MOST_SAID else f"{text[:_MOST_SAID]}…{text[-_MOST_SAID:]}"


def _readable(text: str) -> str:
    text = _INVALID_VALUE.sub(r"this does not allow the value '\g<value>'", _INVALID_FIELD.sub("", text))
    return text[:1].lower() + text[1:]
