"""Shards: files of so many rows each, with their pictures, and a manifest that says which are finished.

    out-00000.tar   rows 0 to 999
    out-00001.tar   rows 1000 to 1999
    manifest.json   of each: rows, bytes, the file's hash, the rows' hash

A shard of the same rows as before is left as it is, and its pictures are not read again: a run that goes on after a
kill writes what is missing. What it leaves is made of source and log alone, to the byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from broker_pipeline.captioning.sinks.manifest import Manifest, Shard, load_manifest, save_manifest
from broker_pipeline.captioning.sinks.new_file import NewFile, nothing_to_replace, opening, writing
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sinks.texts import valid
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import MediaError, OutputError
from broker_pipeline.process.terminal import counted, printable

Filled = tuple[Row, bytes | None]
"""A row with the bytes of its picture; None for one that failed, whose picture cannot be had."""
NUMBER = re.compile("%0[1-9]d")
"""Of a shard, in the pattern of their names."""
_CHUNK_BYTES = 1 << 20


def shards_of(pattern: str) -> re.Pattern[str]:
    """Return what fits the name, or path, of every shard of a pattern."""
    return re.compile("[0-9]+".join(map(re.escape, NUMBER.split(pattern))))


class ShardForm(Protocol):
    """How a shard is written."""

    def check(self, item: Item) -> None:
        """Raise `ConfigurationError` where such an item has no place beside those before it."""

    def take(self, item: Item) -> None:
        """Take note of the item of the next row; raises `NoPlaceError` where it has no place beside those before."""

    def learn(self, rows: Sequence[Row]) -> str:
        """Look at the rows of the next shard; returns what decides, besides rows, on what is in the file."""

    def write(self, stream: BinaryIO, rows: Iterable[Filled]) -> None:
        """Write a file. Raises `OSError`."""


class Shards:
    """A sink that writes a file for each `settings.shard_rows` rows. `pattern` has the number as `%05d`."""

    def __init__(self, pattern: Path, settings: SinkSettings, form: ShardForm) -> None:
        """Read the manifest that is there; raises `ConfigurationError` for one of other files."""
        self.shards: list[Shard] = []
        self._pattern = pattern
        self._settings = settings
        self._form = form
        self._rows: list[Row] = []
        self._unreadable: list[str] = []
        self._path = pattern.parent / "manifest.json"
        with opening(self._path):
            before = load_manifest(self._path, pattern.name, settings)
        self._before = before.shards_with(settings)
        self._listed = frozenset(filter(shards_of(pattern.name).fullmatch, before.files))
        if not before.files:
            self._save((), is_whole=False)  # the folder is this target's: another one is refused

    def check(self, item: Item) -> None:
        """Raise `ConfigurationError` where such an item has no place beside those before it."""
        self._form.check(item)

    def add(self, row: Row) -> None:
        """Take a row, and write the shard that it completes."""
        if row.is_whole:
            self._form.take(row.item)
        if row.is_whole or self._settings.keep_failed:
            self._rows.append(row)
            if len(self._rows) == self._settings.shard_rows:
                self._complete()

    def close(self, *, is_whole: bool) -> None:
        """Finish, and tell what is missing."""
        self.finish(is_whole=is_whole)
        self.tell_unreadable()

    def finish(self, *, is_whole: bool) -> None:
        """Write the last shard where the run came to its end, and remove those of an earlier, longer one."""
        if not is_whole:
            return
        if self._rows:
            self._complete()
        if not self.shards and self._listed:
            raise nothing_to_replace(self._pattern)
        with writing(self._path):
            for left in self._left():
                (self._pattern.parent / left).unlink(missing_ok=True)
        self._listed = frozenset()
        self._save((), is_whole=not any(shard.unreadable for shard in self.shards))

    def tell_unreadable(self) -> None:
        """Raise `OutputError` where items are left out that have their captions: the next run tries them again."""
        if left := [name for shard in self.shards for name in shard.unreadable]:
            names = f"{printable(left[0])}{', …' if len(left) > 1 else ''}"
            reason = f"{counted(len(left), 'item')} could not be read again, or changed meanwhile, left out: {names}"
            raise OutputError(f"--to {printable(self._pattern)}: {reason}", field="to")

    def _left(self) -> list[str]:
        """Return files of earlier runs, with whatever settings, that this run has not replaced. Others' stay."""
        return sorted(self._listed.difference(shard.file for shard in self.shards))

    def _complete(self) -> None:
        rows, self._rows = self._rows, []
        number, digest = len(self.shards), _digest(self._form.learn(rows), rows)
        self.shards.append(self._kept(number, digest) or self._written(number, digest, rows))
        self._save(self._before[number + 1 :], is_whole=False)

    def _kept(self, number: int, digest: str) -> Shard | None:
        """Return the shard of an earlier run that has these rows, where it is there as it was."""
        if number >= len(self._before):
            return None
        before = self._before[number]
        if before.rows_sha256 != digest or before.unreadable:
            return None
        try:
            size = (self._pattern.parent / before.file).stat().st_size
        except OSError:
            return None
        return before if size == before.bytes else None

    def _written(self, number: int, digest: str, rows: Sequence[Row]) -> Shard:
        path = self._pattern.parent / (self._pattern.name % number)
        self._unreadable = []
        with writing(path):
            file = NewFile(path)
            try:
                self._form.write(file.stream, self._filled(rows))
                size, sha256 = _measured(file.stream)
                file.commit()
            finally:
                file.discard()
        unreadable = tuple(self._unreadable)
        return Shard(
            file=path.name,
            rows=len(rows) - len(unreadable),
            bytes=size,
            sha256=sha256,
            rows_sha256=digest,
            unreadable=unreadable,
        )

    def _filled(self, rows: Sequence[Row]) -> Iterator[Filled]:
        for row in rows:
            content = _content_of(row)
            if content is None and row.is_whole:
                self._unreadable.append(valid(row.item.id))
            else:
                yield row, content

    def _save(self, left: Sequence[Shard], *, is_whole: bool) -> None:
        manifest = Manifest(
            target=self._pattern.name,
            settings=self._settings,
            is_whole=is_whole,
            num_rows=sum(shard.rows for shard in (*self.shards, *left)),
            shards=(*self.shards, *left),
            left=tuple(name for name in self._left() if all(shard.file != name for shard in left)),
        )
        save_manifest(self._path, manifest)


def _content_of(row: Row) -> bytes | None:
    """Return an item's bytes; None where they cannot be had, or are not those that its captions are about."""
    try:
        content = row.item.read()
    except MediaError:
        return None
    about = {line.sha256 for line in row.lines.values()}
    return content if not row.is_whole or about == {hashlib.sha256(content).hexdigest()} else None


def _digest(form: str, rows: Sequence[Row]) -> str:
    digest = hashlib.sha256(form.encode())
    for row in rows:
        lines = [
            (name, line.sha256, line.job_id, line.caption, line.status, line.error and line.error.message)
            for name, line in row.lines.items()
        ]
        digest.update(repr((row.item.id, dict(row.item.fields), lines)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _measured(stream: BinaryIO) -> tuple[int, str]:
    """Return the size of what was written, and its hash."""
    stream.flush()
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return stream.tell(), digest.hexdigest()
