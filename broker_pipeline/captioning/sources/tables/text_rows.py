"""Rows of tables that are texts: CSV, TSV and JSON Lines."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec

from broker_pipeline.captioning.sources.opening import open_stream
from broker_pipeline.captioning.sources.strict_json import strict_json
from broker_pipeline.captioning.sources.tables.table import Cells, NumberedRows, check_columns
from broker_pipeline.errors import MediaError, UnreadableFileError

_BOM = b"\xef\xbb\xbf"


def csv_rows(location: str, delimiter: str = ",") -> NumberedRows:
    """Yield the rows below the header, as `csv` reads them."""
    # Bytes that are no UTF-8 cost their own row, and not all that follow.
    with io.TextIOWrapper(open_stream(location), "utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        if reader.fieldnames is None:
            raise UnreadableFileError("the file is empty")
        check_columns(reader.fieldnames)
        number = 0
        while True:
            try:
                row = _checked(next(reader))
            except StopIteration:
                return
            except csv.Error as error:
                yield number, UnreadableFileError(f"line {reader.line_num}: {error}")
            else:
                yield number, row
            number += 1


def jsonl_rows(location: str) -> NumberedRows:
    """Yield the lines' objects by the numbers of their lines from 0 on; empty lines are none."""
    with open_stream(location) as lines:
        for number, line in enumerate(lines):
            if line.strip():
                yield number, _decoded(number, line.removeprefix(_BOM))


def _checked(row: dict[Any, Any]) -> Cells | MediaError:
    if None in row:
        return UnreadableFileError("the row has more cells than the header")
    try:
        "".join(cell for cell in row.values() if cell).encode()
    except UnicodeEncodeError:
        return UnreadableFileError("the row is no UTF-8")
    return row


def _decoded(number: int, line: bytes) -> Cells | MediaError:
    try:
        row = strict_json(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return UnreadableFileError(f"line {number + 1} is no JSON object: {error}")
    return row if isinstance(row, dict) else UnreadableFileError(f"line {number + 1} is no JSON object")
