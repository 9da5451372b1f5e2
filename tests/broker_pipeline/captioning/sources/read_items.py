"""What is asked of every source, and pictures to ask it with."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO

from PIL import Image

from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import MediaError

Found = tuple[str, bytes | str, dict[str, object]]


def picture(number: int) -> bytes:
    """Return a small PNG that no other number has."""
    file = BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def read(item: Item) -> Found:
    """Return id, bytes or why there are none, and fields."""
    try:
        content: bytes | str = item.read()
    except MediaError as error:
        content = error.message
    return item.id, content, dict(item.fields)


def read_twice(source: Iterable[Item]) -> list[Found]:
    """Return what a source gives; every pass and every read must give the same, and no two items one id."""
    items = list(source)
    found = [read(item) for item in items]
    assert [read(item) for item in reversed(items)] == found[::-1]
    again = [read(item) for item in source]
    assert again == found, (found, again)
    assert len({id_ for id_, _, _ in found}) == len(found)
    return found
