"""Tables as a source: a row is an item, and the columns beside the picture's are its fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from broker_pipeline.captioning.sources.item import Item, broken
from broker_pipeline.captioning.sources.location import named_in, scheme_of
from broker_pipeline.captioning.sources.named_item import item_at
from broker_pipeline.captioning.sources.opening import media_error
from broker_pipeline.captioning.sources.reading import check_size
from broker_pipeline.captioning.sources.settings import SourceSettings
from broker_pipeline.errors import ConfigurationError, MediaError, UnreadableFileError
from broker_pipeline.process.terminal import printable

GUESSES = (
    *("image", "jpg", "png", "img", "picture", "bytes"),
    *("image_path", "path", "file_name", "url", "URL", "image_url"),
)
"""Names of columns that hold pictures, or say where they are, the likeliest first."""

Cells = Mapping[str, object]
NumberedRows = Iterator[tuple[int, Cells | MediaError]]
"""Rows by their numbers from 0 on; an error stands for one row, or for all up to the next number; -1 is the file."""


class TableSource:
    """A table. Items are called `FILE#ROW`, so that no two have one name whatever is in the rows."""

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        read: Callable[[str], NumberedRows],
        count: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        """Prepare to read a file by `read`, of which `count` knows the rows without reading them."""
        self.name = name
        self._settings = settings
        self._read = read
        self._count = count

    def count(self) -> int | None:
        """Return the number of rows, where the file tells it."""
        if scheme_of(self.name):  # many requests, where there are many files
            return None
        try:
            return self._count(self.name)
        except ConfigurationError:
            raise
        except Exception:  # noqa: BLE001 - told when the rows are read
            return None

    def __iter__(self) -> Iterator[Item]:
        """Yield the rows; raises `ConfigurationError` where the column is not there."""
        column = None
        for number, row in self._rows():
            if isinstance(row, MediaError):
                yield broken(f"{self.name}#{number}" if number >= 0 else self.name, row)
                continue
            column = column or _column_of(self.name, row, self._settings)
            yield self._item(number, row, column)

    def _rows(self) -> NumberedRows:
        number = -1
        try:
            for number, row in self._read(self.name):
                yield number, row
        except Exception as error:  # noqa: BLE001 - the formats' libraries and file systems have their own
            broken_off = media_error(self.name, error)
            if number >= 0:
                broken_off.message += "; no row from here on is read"
            yield number if number < 0 else number + 1, broken_off

    def _item(self, number: int, row: Cells, column: str) -> Item:
        id_ = f"{self.name}#{number}"
        fields = {name: cell for name, cell in row.items() if name != column}
        try:
            return _item_of(self.name, id_, row.get(column), fields)
        except MediaError as error:
            return broken(id_, type(error)(f"column {printable(column)}: {error.message}"), fields)


def check_columns(names: Iterable[str]) -> None:
    """Raise `UnreadableFileError` where two columns have one name: a row would have one of them alone."""
    if twice := [name for name, num in Counter(names).items() if num > 1]:
        raise UnreadableFileError(f"two columns are called {printable(twice[0])}; give one another name")


def _column_of(table: str, first: Cells, settings: SourceSettings) -> str:
    """Return the column of pictures by a table's first row: one that has no number there, where there is one."""
    asked = settings.image_column
    names = [name for name in ([asked] if asked else GUESSES) if name in first]
    found = min(names, key=lambda name: isinstance(first[name], int | float), default=None)
    if found and not (asked and isinstance(first[found], int | float)):
        return found
    there = printable(", ".join(first))
    if asked and found:
        reason = (
            f"--image-column {printable(asked)}: numbers are in it, and no pictures; {printable(table)} has {there}"
        )
    elif asked:
        reason = f"--image-column {printable(asked)}: {printable(table)} has no such column, but {there}"
    else:
        reason = f"which column of {printable(table)} has the pictures? --image-column says it, of {there}"
    raise ConfigurationError(reason, field="image_column")


def _item_of(table: str, id_: str, cell: object, fields: Cells) -> Item:
    """Return the item of a cell: bytes, a path or URL, or a mapping of one of them as Hugging Face's `Image` has it."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray) and cell:
        check_size(len(cell))
        return Item(id_, partial(bytes, cell), fields)
    if isinstance(cell, str) and cell:
        return item_at(id_, named_in(table, cell), fields)
    raise UnreadableFileError("nothing is in it" if not cell else f"it holds a {type(cell).__name__}, and no picture")
