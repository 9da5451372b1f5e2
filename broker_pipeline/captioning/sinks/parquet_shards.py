"""Shards of Parquet with the pictures in them, as the features `Image` and `Video` of `datasets` have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

from broker_pipeline.captioning.sinks.names import key_of, media_ending
from broker_pipeline.captioning.sinks.record import Record, record_of
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.shards import Filled
from broker_pipeline.captioning.sinks.tables.columns import Columns
from broker_pipeline.captioning.sinks.tables.parquet import Parquet, need_pyarrow
from broker_pipeline.captioning.sinks.tables.table_file import by_id
from broker_pipeline.captioning.sinks.texts import json_text
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import NoPlaceError
from broker_pipeline.process.terminal import printable


class ParquetShards:
    """The form of Parquet files. The rows of the first one decide on the columns of all."""

    def __init__(self, settings: SinkSettings) -> None:
        """Write what `settings` keep; raises `ConfigurationError` where pyarrow is not installed."""
        need_pyarrow()
        self._settings = settings
        self._media: str | None = None
        self.columns: Columns | None = None
        """None before the first rows."""

    def check(self, item: Item) -> None:
        """Raise `ConfigurationError` for a video beside pictures, and the other way round, as far as paths tell."""
        if item.path:
            self.take(item)

    def take(self, item: Item) -> None:
        """Take note of what an item is; raises `NoPlaceError` for a video beside pictures, and the other way round."""
        media = "video" if item.is_video else "image"
        self._media = self._media or media
        if media != self._media:
            reason = f"{printable(item.id)}: one column holds pictures or videos; write both to tars"
            raise NoPlaceError(reason, field="to")

    def learn(self, rows: Sequence[Row]) -> str:
        """Return the columns."""
        if self.columns is None:
            self._media = self._media or ("video" if rows[0].item.is_video else "image")  # where all have failed
            self.columns = Columns.of(self._record(row, None) for row in rows)
        return json_text(self.columns.kinds)

    def write(self, stream: BinaryIO, rows: Iterable[Filled]) -> None:
        """Write a file. Raises `OSError`."""
        assert self.columns is not None, "learn comes first"
        table = Parquet(stream, self.columns)
        for row, content in rows:
            table.add(self._record(row, content and _picture(row, content)))
        table.finish()

    def _record(self, row: Row, picture: Mapping[str, object] | bytes | None) -> Record:
        return record_of(row, self._settings, {self._media or "image": picture or None, **by_id(row.item)})


def _picture(row: Row, content: bytes) -> dict[str, object]:
    name = PurePosixPath(key_of(row.item)).name
    return {"bytes": content, "path": f"{name}{media_ending(row.item, content)}"}
