"""Checked reading of one JSON object of a model's configuration files.

Every read checks the value and blames the full name of the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from broker_pipeline.errors import ModelConfigError


class Fields:
    """One JSON object; every read checks the value and blames the full name of the field."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = values
        self._path = path

    @classmethod
    def from_json(cls, source: bytes | str | Mapping[str, Any], *, file: str, path: str) -> Fields:
        """Read a file, given as its bytes, its text or the parsed object; `path` begins the names of its fields.

        Raises:
            ModelConfigError: it is not a JSON object; `file` is named.
        """
        try:
            values = source if isinstance(source, Mapping) else orjson.loads(source)
        except ValueError as error:
            raise ModelConfigError(f"{file} is not valid JSON: {error}", field=file) from error
        if not isinstance(values, Mapping):
            raise ModelConfigError(f"{file} is not a JSON object", field=file)
        return cls(values, path)

    def name(self, key: str) -> str:
        """Return the field's full name, with the sections around it."""
        return f"{self._path}.{key}" if self._path else key

    def has(self, key: str) -> bool:
        """Say whether the field is given and not null."""
        return self._values.get(key) is not None

    def agrees(self, key: str, other: Fields) -> bool:
        """Say whether `other` has the same value in this field."""
        return self._values.get(key) == other._values.get(key)

    def error(self, key: str, expected: str) -> ModelConfigError:
        """Say what was found in the field, and what was expected."""
        found = repr(self._values[key])[:80] if key in self._values else "missing"
        return ModelConfigError(f"{self.name(key)} is {found}; expected {expected}", field=self.name(key))

    def section(self, key: str) -> Fields:
        """Read a nested object."""
        value = self._values.get(key)
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return Fields(value, self.name(key))

    def text(self, key: str) -> str:
        """Read a string."""
        value = self._values.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of strings."""
        value = self._values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "a list of strings")
        return tuple(value)

    def flag(self, key: str) -> bool:
        """Read a boolean."""
        value = self._values.get(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def integer(self, key: str, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
        """Read an integer, at least `minimum` and at most `maximum`."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(key, f"an integer of at least {minimum}")
        if value > maximum:
            raise self.error(key, f"an integer of at most {maximum}")
        return value

    def positive(self, key: str) -> int:
        """Read an integer of at least 1."""
        return self.integer(key, minimum=1)

    def number(self, key: str) -> float:
        """Read a finite number above 0."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, "a positive number")
        if not math.isfinite(value) or value <= 0:
            raise self.error(key, "a positive number")
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """Read a list of integers of at least 0; one bare integer counts as a list of one."""
        value = self._values.get(key)
        value = [value] if _is_int(value) else value
        if not isinstance(value, list | tuple) or not all(_is_int(item) and item >= 0 for item in value):
            raise self.error(key, "a list of integers of at least 0")
        return tuple(int(item) for item in value)

    def demand(self, key: str) -> None:
        """Refuse an object without the field."""
        if not self.has(key):
            raise self.error(key, "a value: other programs take that of another model where it is left out")

    def require(self, key: str, allowed: object) -> None:
        """Refuse the field where it is given and not `allowed`: other values would need other code."""
        if self.has(key) and self._values[key] != allowed:
            raise self.error(key, f"{allowed!r}, the only value that this engine implements")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
