"""A table as one file, and what names its rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from broker_pipeline.captioning.sinks.new_file import NewFile, nothing_to_replace, opening, writing
from broker_pipeline.captioning.sinks.record import Record, record_of
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.tables.columns import FIRST_ROWS, Columns
from broker_pipeline.captioning.sinks.tables.text_tables import Table
from broker_pipeline.captioning.sinks.texts import valid
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import NoPlaceError
from broker_pipeline.process.terminal import printable

Lead = Callable[[Item], Mapping[str, object]]


class TableFile:
    """A sink that makes one file of all rows, which replaces what is there when the run has come to its end."""

    def __init__(
        self, path: Path, settings: SinkSettings, open_table: Callable[[BinaryIO, Columns], Table], lead: Lead
    ) -> None:
        """Begin a file that becomes `path`; raises `ConfigurationError`. `lead` says what comes before captions."""
        self._path = path
        self._settings = settings
        self._open_table = open_table
        self._lead = lead
        self._first: list[Record] = []
        self._table: Table | None = None
        self._file: NewFile | None = None
        with opening(path):
            NewFile(path).discard()  # says now what is in the way

    def check(self, item: Item) -> None:
        """Raise `ConfigurationError` where no row of such an item could be written."""
        if valid(item.id) == item.id:  # of what is named otherwise, one item says nothing about the next
            self._lead(item)

    def add(self, row: Row) -> None:
        """Write a row, or keep it until the columns are known."""
        if not (row.is_whole or self._settings.keep_failed):
            return
        try:
            lead = self._lead(row.item)
        except NoPlaceError:
            if row.is_whole:
                raise
            return  # it failed, and there is no picture that metadata could be about
        record = record_of(row, self._settings, lead)
        with writing(self._path):
            if self._table:
                self._table.add(record)
                return
            self._first.append(record)
            if len(self._first) == FIRST_ROWS:
                self._begin()

    def close(self, *, is_whole: bool) -> None:
        """Put the file in its place, or remove it."""
        try:
            if is_whole:
                self._commit()
        finally:
            if self._file:
                self._file.discard()

    def _commit(self) -> None:
        with writing(self._path):
            if not (self._table or self._first) and self._path.exists():
                raise nothing_to_replace(self._path)
            (self._table or self._begin()).finish()
            assert self._file, "begun"
            self._file.commit()

    def _begin(self) -> Table:
        self._file = NewFile(self._path)
        self._table = self._open_table(self._file.stream, Columns.of(self._first))
        for record in self._first:
            self._table.add(record)
        self._first = []
        return self._table


def by_id(item: Item) -> dict[str, object]:
    """Name a row by its item's id."""
    return {"id": valid(item.id)}


def by_file_name(folder: Path) -> Lead:
    """Name rows as Hugging Face's ImageFolder finds them: by the picture's path from the folder of the metadata."""
    roots = [Path(os.path.abspath(folder)), Path(os.path.realpath(folder))]  # noqa: PTH100 - resolves no links

    def lead(item: Item) -> dict[str, object]:
        if item.path is None:
            raise _outside(item, folder, "it is no file of this machine")
        parents = [Path(os.path.abspath(item.path.parent)), Path(os.path.realpath(item.path.parent))]  # noqa: PTH100
        for root, parent in zip(roots, parents, strict=True):
            if parent.is_relative_to(root):
                name = (parent / item.path.name).relative_to(root).as_posix()
                if valid(name) != name:
                    raise _outside(item, folder, "its name is no UTF-8")
                return {"file_name": name}
        raise _outside(item, folder, "it is not below that folder")

    return lead


def _outside(item: Item, folder: Path, reason: str) -> NoPlaceError:
    text = f"{printable(item.id)}: metadata in {printable(folder)} cannot name it, since {reason}"
    return NoPlaceError(f"{text}; --to *.jsonl, *.parquet and the others can", field="to")
