"""Rows of Parquet and Arrow files, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from broker_pipeline.captioning.sources.location import scheme_of
from broker_pipeline.captioning.sources.opening import media_error, need_package, open_seekable
from broker_pipeline.captioning.sources.tables.table import NumberedRows, check_columns

_BATCH_ROWS = 32
"""Rows that are in memory at once, with their pictures."""
_BUFFER_BYTES = 1 << 20
_FILE_MAGIC = b"ARROW1"


def parquet_rows(location: str) -> NumberedRows:
    """Yield the rows; a row group that cannot be read is one error from its first row that could not."""
    with closing(_open_parquet(location)) as file:
        check_columns(file.schema_arrow.names)
        first = 0
        for group in range(file.num_row_groups):
            number = first
            try:
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    yield from _rows_of(batch, number, location)
                    number += batch.num_rows
            except Exception as error:  # noqa: BLE001 - pyarrow's, and the file system's
                yield number, media_error(location, error)
            first += file.metadata.row_group(group).num_rows


def count_parquet(location: str) -> int:
    """Return the number of rows, by what the file's end says."""
    with closing(_open_parquet(location)) as file:
        return int(file.metadata.num_rows)


def arrow_rows(location: str) -> NumberedRows:
    """Yield the rows of an Arrow file, which Feather's are as well, or of a saved Arrow stream."""
    number = 0
    with _open(location) as stream:
        for batch in _batches(stream):
            check_columns(batch.schema.names)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield from _rows_of(batch.slice(start, _BATCH_ROWS), number + start, location)
            number += batch.num_rows


def count_arrow(location: str) -> int:
    """Return the number of rows; of a mapped file, only what describes its batches is read."""
    with _open(location) as stream:
        return sum(batch.num_rows for batch in _batches(stream))


def _rows_of(batch: Any, first: int, location: str) -> NumberedRows:
    """Yield the rows of a batch; a cell that cannot be read is an error of its own row alone."""
    try:
        rows = batch.to_pylist()
    except Exception as error:  # noqa: BLE001 - such as a text that is no UTF-8, which pyarrow sees here
        if batch.num_rows == 1:
            yield first, media_error(location, error)
            return
        for index in range(batch.num_rows):
            yield from _rows_of(batch.slice(index, 1), first + index, location)
    else:
        yield from enumerate(rows, first)


def _open(location: str) -> Any:
    pyarrow = need_package("pyarrow", location)
    return open_seekable(location) if scheme_of(location) else pyarrow.memory_map(location)


def _open_parquet(location: str) -> Any:
    parquet = need_package("pyarrow.parquet", location)
    if scheme_of(location):  # whole column chunks: few requests
        return parquet.ParquetFile(open_seekable(location), pre_buffer=True)
    return parquet.ParquetFile(location, buffer_size=_BUFFER_BYTES, memory_map=False)


def _batches(stream: Any) -> Iterator[Any]:
    ipc = need_package("pyarrow.ipc", "Arrow")
    magic = stream.read(len(_FILE_MAGIC))
    stream.seek(0)
    if magic != _FILE_MAGIC:
        yield from ipc.open_stream(stream)
        return
    reader = ipc.open_file(stream)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)
