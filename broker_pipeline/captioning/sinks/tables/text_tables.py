"""Tables that are texts: JSON Lines and CSV, in UTF-8."""

from __future__ import annotations

import csv
from typing import BinaryIO, Protocol

from broker_pipeline.captioning.sinks.record import Record
from broker_pipeline.captioning.sinks.tables.columns import Columns
from broker_pipeline.captioning.sinks.texts import json_text, plain


class Table(Protocol):
    """A file that rows are written to. Both raise `OSError`."""

    def add(self, record: Record) -> None:
        """Write a row, now or later."""

    def finish(self) -> None:
        """Write what is left, and what the file ends with."""


class JsonLines:
    """A JSON object a line, with the fields as they are."""

    def __init__(self, stream: BinaryIO, _: Columns) -> None:
        """Write to `stream`."""
        self._stream = stream

    def add(self, record: Record) -> None:
        """Write a line."""
        self._stream.write(f"{json_text(record.all)}\n".encode())

    def finish(self) -> None:
        """Do nothing: lines need no end of a file."""


class TypedJsonLines(JsonLines):
    """The same columns in each line, and of one type: Arrow's reader of JSON, which `datasets` has, takes no other."""

    def __init__(self, stream: BinaryIO, columns: Columns) -> None:
        """Write to `stream`."""
        super().__init__(stream, columns)
        self._columns = columns

    def add(self, record: Record) -> None:
        """Write a line."""
        self._stream.write(f"{json_text(self._columns.cells(record))}\n".encode())


class Csv:
    """CSV as RFC 4180 has it, with a header; cells may have line ends. Nothing stands for null, and JSON for lists."""

    def __init__(self, stream: BinaryIO, columns: Columns) -> None:
        """Write to `stream`, the header first."""
        self._stream = stream
        self._columns = columns
        self._csv = csv.writer(self)
        if columns.kinds:
            self._csv.writerow(columns.kinds)

    def add(self, record: Record) -> None:
        """Write a row."""
        cells = map(plain, self._columns.cells(record).values())
        self._csv.writerow(cell if isinstance(cell, str) or cell is None else json_text(cell) for cell in cells)

    def finish(self) -> None:
        """Do nothing: rows need no end of a file."""

    def write(self, text: str) -> None:
        """Take what `csv` makes of a row."""
        self._stream.write(text.encode())
