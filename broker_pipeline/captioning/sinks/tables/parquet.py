"""Parquet with the columns of `Columns`, and types that `datasets` knows again."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from broker_pipeline.captioning.sinks.record import Record
from broker_pipeline.captioning.sinks.tables.columns import Columns
from broker_pipeline.captioning.sources.opening import need_package
from broker_pipeline.errors import ConfigurationError

_GROUP_ROWS = 1000
_GROUP_BYTES = 64 << 20
"""Of pictures: a reader holds a row group in memory."""
_DTYPES = {"bool": "bool", "int": "int64", "float": "float64", "text": "string", "json": "string", "bytes": "binary"}


class Parquet:
    """A Parquet file; rows are written in groups."""

    def __init__(self, stream: BinaryIO, columns: Columns) -> None:
        """Write to `stream`."""
        self._columns = columns
        self._schema = _schema_of(columns)
        self._file = need_pyarrow("pyarrow.parquet").ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[dict[str, object]] = []
        self._num_bytes = 0

    def add(self, record: Record) -> None:
        """Take a row, and write those that make a group."""
        self._rows.append(self._columns.cells(record))
        self._num_bytes += sum(len(cell.get("bytes") or b"") for cell in record.own.values() if isinstance(cell, dict))
        if len(self._rows) >= _GROUP_ROWS or self._num_bytes >= _GROUP_BYTES:
            self._write_group()

    def finish(self) -> None:
        """Write what is left, and what the file ends with."""
        if self._rows:
            self._write_group()
        self._file.close()

    def _write_group(self) -> None:
        table = need_pyarrow("pyarrow").Table.from_pylist(self._rows, self._schema)
        self._rows, self._num_bytes = [], 0
        self._file.write_table(table)


def need_pyarrow(name: str = "pyarrow") -> Any:
    """Return pyarrow, or a module of it; raises `ConfigurationError` where it is not installed."""
    try:
        return need_package(name, "a Parquet file")
    except ConfigurationError as error:
        raise ConfigurationError(error.message, field="to") from error


def features_of(columns: Columns) -> dict[str, dict[str, Any]]:
    """Return the columns' types in the form that `datasets.Features.from_dict` reads."""

    def feature(kind: str) -> dict[str, Any]:
        if kind in {"image", "video"}:
            return {"_type": kind.title()}
        if kind.startswith("list:"):
            return {"feature": feature(kind.removeprefix("list:")), "_type": "List"}
        return {"dtype": _DTYPES[kind], "_type": "Value"}

    return {name: feature(kind) for name, kind in columns.kinds.items()}


def _schema_of(columns: Columns) -> Any:
    """Return Arrow's schema, which names the features for `datasets`, so that pictures are decoded unasked."""
    pyarrow = need_pyarrow()
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])

    def type_of(kind: str) -> Any:
        if kind.startswith("list:"):
            return pyarrow.list_(type_of(kind.removeprefix("list:")))
        return picture if kind in {"image", "video"} else pyarrow.type_for_alias(_DTYPES[kind])

    fields = [(name, type_of(kind)) for name, kind in columns.kinds.items()]
    return pyarrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features_of(columns)}})})
