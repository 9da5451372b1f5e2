"""The columns of a table, by its first rows.

A field is a column of booleans, integers, numbers, texts or bytes, or of lists of one of them, where that is what all
the first rows have; otherwise its values are written as JSON. What does not fit in a later row, or had no column in the
first ones, stands in the row's `other_fields`, as a JSON object: no value is lost, and none stops the run. That column
is there where any of the first rows has fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker_pipeline.captioning.sinks.record import OTHER_FIELDS, Record
from broker_pipeline.captioning.sinks.texts import json_text, plain, valid
from broker_pipeline.errors import ConfigurationError

FIRST_ROWS = 1000
"""Of a single file: they decide on its columns."""
_LIST = "list:"
_ATOMS = {"bool", "int", "float", "text"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns in order, each with the kind of its values: bool, int, float, text, bytes, `list:` of one, json."""

    kinds: Mapping[str, str]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Columns:
        """Return the columns that hold these rows."""
        own: dict[str, str] = {}
        fields: dict[str, set[str]] = {}
        for record in records:
            own |= record.kinds
            for name, value in record.fields.items():
                fields.setdefault(name, set()).add(_kind_of(value))
        other = {OTHER_FIELDS: "text"} if fields else {}
        return cls({**own, **{name: _common(kinds) for name, kinds in fields.items()}, **other})

    def cells(self, record: Record) -> dict[str, object]:
        """Return a row's values, one for each column. Raises `ConfigurationError` for fields after rows without any."""
        values = record.all
        cells = {name: _cell(values.get(name), kind) for name, kind in self.kinds.items()}
        left = {name: value for name, value in values.items() if not _fits(value, self.kinds.get(name, ""))}
        if left and OTHER_FIELDS not in self.kinds:
            reason = f"{next(iter(record.own.values()))!s} has a field {next(iter(left))}, and no row before it has any"
            raise ConfigurationError(
                f"{reason}; leave fields out, or write such rows to a target of their own", field="to"
            )
        return cells | ({OTHER_FIELDS: json_text(left)} if left else {})


def _kind_of(value: object) -> str:
    """Return the kind of a value; nothing for none, `list:` for an empty list."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, list | tuple):
        kind = _common({_kind_of(each) for each in value}) if value else ""
        return _LIST + kind if not value or kind in _ATOMS else "json"
    kinds = {float: "float", str: "text", bytes: "bytes"}
    return next((kind for of_type, kind in kinds.items() if isinstance(value, of_type)), "json")


def _common(kinds: set[str]) -> str:
    """Return the kind that holds values of all these kinds; text where there are none."""
    kinds = kinds - {""}
    if kinds == {"int", "float"}:
        return "float"
    if len(kinds) < 2:
        kind = kinds.pop() if kinds else "text"
        return "json" if kind == _LIST else kind
    if all(kind.startswith(_LIST) for kind in kinds):
        of_items = _common({kind.removeprefix(_LIST) for kind in kinds})
        return _LIST + of_items if of_items in _ATOMS else "json"
    return "json"


def _fits(value: object, kind: str) -> bool:
    """Whether a column of this kind, or none, holds a value as it is."""
    of_value = _kind_of(value)
    if not of_value or kind in {"json", "image", "video"} or of_value == kind:
        return True
    if of_value == _LIST:
        return kind.startswith(_LIST)
    return bool(kind) and of_value != "json" and _common({of_value, kind}) == kind


def _cell(value: object, kind: str) -> object:
    """Return a value as its column has it; None where it does not fit."""
    if value is None or not _fits(value, kind):
        return None
    if kind == "json":
        return json_text(value)
    if kind == "text":
        return valid(str(value))
    if kind.endswith("float") and isinstance(value, list | tuple):
        return [None if each is None else float(each) for each in value]
    return plain(value) if kind.startswith(_LIST) else float(value) if kind == "float" else value  # type: ignore[arg-type]
