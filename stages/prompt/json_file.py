"""Reading of a model's JSON files that need not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from broker_pipeline.errors import ModelConfigError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a file's content, empty where there is no such file.

    Raises:
        ModelConfigError: it is not a JSON object.
    """
    return parse_json_object(path.read_bytes(), path.name) if path.is_file() else {}


def parse_json_object(content: bytes, name: str) -> dict[str, Any]:
    """Return what the file `name` holds.

    Raises:
        ModelConfigError: it is not a JSON object.
    """
    try:
        value = orjson.loads(content)
    except ValueError as error:
        raise ModelConfigError(f"{name} is not valid JSON: {error}", field=name) from error
    if not isinstance(value, dict):
        raise ModelConfigError(f"{name} is not a JSON object", field=name)
    return value
