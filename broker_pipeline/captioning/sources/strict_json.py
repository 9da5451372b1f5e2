"""JSON in which no object has a key twice: readers would take one of the two values, and nobody would know which."""

from __future__ import annotations

import json
from typing import Any

import msgspec


def strict_json(text: bytes) -> Any:
    """Return what a text says. Raises `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError`."""
    value = msgspec.json.decode(text)
    json.loads(text, object_pairs_hook=_check)
    return value


def _check(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise msgspec.DecodeError(f"the key {key!r} is there twice")
        seen.add(key)
