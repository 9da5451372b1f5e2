"""Shards as WebDataset reads them: tars in which the members of one key are one sample."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from broker_pipeline.captioning.sinks.names import key_of, media_ending
from broker_pipeline.captioning.sinks.record import captions_of, record_of
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.shards import Filled
from broker_pipeline.captioning.sinks.tables.table_file import by_id
from broker_pipeline.captioning.sinks.texts import json_text
from broker_pipeline.captioning.sources.item import Item


class TarShards:
    """The form of tars, the same to the byte whenever they are written.

    A sample is the picture under its own ending, the first or only caption as `.txt`, each further one as `.NAME.txt`,
    and all that is known as `.json`. The second sample with a key of the same shard gets `-2` behind it.
    """

    def __init__(self, settings: SinkSettings) -> None:
        """Write what `settings` keep."""
        self._settings = settings

    def check(self, item: Item) -> None:
        """Take every item."""

    def take(self, item: Item) -> None:
        """Take every item."""

    def learn(self, rows: Sequence[Row]) -> str:  # noqa: ARG002 - each tar stands for itself
        """Return nothing."""
        return ""

    def write(self, stream: BinaryIO, rows: Iterable[Filled]) -> None:
        """Write a tar. Raises `OSError`."""
        taken: set[str] = set()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row, content in rows:
                key = _free(key_of(row.item), taken)
                taken.add(key)
                for ending, member in self._members(row, content):
                    header = tarfile.TarInfo(f"{key}{ending}")  # mtime, uid and gid are 0
                    header.size = len(member)
                    tar.addfile(header, io.BytesIO(member))

    def _members(self, row: Row, content: bytes | None) -> Iterator[tuple[str, bytes]]:
        if content is not None:
            yield media_ending(row.item, content), content
        for number, (name, caption) in enumerate(captions_of(row, self._settings).items()):
            if caption is not None:
                yield f".{name}.txt" if number else ".txt", caption.encode()
        record = record_of(row, self._settings, by_id(row.item))
        yield ".json", json_text(record.all).encode()


def _free(key: str, taken: set[str]) -> str:
    free, number = key, 1
    while free in taken:
        number += 1
        free = f"{key}-{number}"
    return free
