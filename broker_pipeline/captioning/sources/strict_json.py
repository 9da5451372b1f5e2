"""JSON in which no object has a key twice: readers would take one of the two values, and nobody would know which."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec


def strict_json(text: bytes) -> Any:
    """Return what a text says. Raises `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError`."""
    value = msgspec.json.decode(text)
    json.loads(text, object_pairs_hook=_check)
    return value


def _check(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise msgspec.DecodeError(f"the key {key!r} is there twice")
