"""Values that a field of a struct must refuse, made from the field's own type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

NEVER_RIGHT = [[[1]]]
"""No field takes this."""


def field_types(struct: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """Return the type of each field by its name."""
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    return {field.encode_name: field.type for field in described.fields}


def wrong_values(kind: inspect.Type) -> Iterator[Any]:
    """Yield values that JSON can hold and the type does not allow: too small, too large, misspelt, of another kind."""
    yield NEVER_RIGHT
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for member in members:
        yield from _of_member(member)


def _of_member(kind: inspect.Type) -> Iterator[Any]:
    if isinstance(kind, inspect.Metadata):
        yield from _of_member(kind.type)
    elif isinstance(kind, inspect.IntType | inspect.FloatType):
        yield from _beyond(kind)
    elif isinstance(kind, inspect.StrType):
        yield from [""] if kind.min_length or kind.pattern else []
        yield from ["x" * (kind.max_length + 1)] if kind.max_length and kind.max_length < 10**5 else []
        yield from ["no such \x7f value"] if kind.pattern else []
    elif isinstance(kind, inspect.LiteralType):
        yield "no such value"
    elif isinstance(kind, inspect.VarTupleType):
        yield from ([wrong] for wrong in wrong_values(kind.item_type))
    elif isinstance(kind, inspect.DictType):
        yield from ({"1": wrong} for wrong in wrong_values(kind.value_type))
    elif isinstance(kind, inspect.StructType):
        yield {"no_such_field": 1}


def _beyond(kind: inspect.IntType | inspect.FloatType) -> Iterator[Any]:
    yield from [kind.ge - 1] if kind.ge is not None else []
    yield from [kind.gt] if kind.gt is not None else []
    yield from [kind.le + 1] if kind.le is not None else []
    yield from [kind.lt] if kind.lt is not None else []


def texts_of(value: Any) -> list[str]:
    """Return a value as form fields or flags give it: a list is given several times, an object as JSON."""
    texts = value if isinstance(value, list) else [value]
    return [text if isinstance(text, str) else msgspec.json.encode(text).decode() for text in texts]
