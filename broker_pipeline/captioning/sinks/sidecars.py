"""Sidecars: each caption in a text file beside its picture, as trainers of diffusion models read it.

    photos/cat.jpg    photos/cat.txt    photos/cat.short.txt      the first question's, and that of `--ask short=…`

Appending and prepending are done once: a file that begins or ends with this caption is left as it is. Where two
pictures have one file, such as `cat.jpg` and `cat.png`, it is about the first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from broker_pipeline.captioning.sinks.names import path_of
from broker_pipeline.captioning.sinks.new_file import write_whole, writing
from broker_pipeline.captioning.sinks.record import captions_of
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sinks.settings import SinkSettings
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.captioning.sources.location import scheme_of
from broker_pipeline.errors import ConfigurationError, NoPlaceError, OutputError
from broker_pipeline.process.terminal import printable

Mode = Literal["overwrite", "skip", "missing", "append", "prepend"]
_KEEPING = frozenset({"skip", "missing"})
_JOINT = ", "
_FIELD = "sidecar"
_ABOUT_ONE_FILE = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""What the system says where other sidecars can be written nevertheless."""


class Sidecars:
    """A sink that writes a file for each answer, as soon as it is known."""

    def __init__(
        self,
        ending: str,
        mirror: Path | None,
        mode: Mode,
        settings: SinkSettings,
        roots: Sequence[Path],
        others: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write below `mirror`, with the folders that a picture has below one of `roots`; beside it where it is None.

        `others` are files that the run reads or writes, by their real paths, with what names them. Raises
        `ConfigurationError` for an ending that is none.
        """
        if not ending.strip(".") or "/" in ending or "\0" in ending:
            raise ConfigurationError("--sidecar takes an ending, such as .txt", field=_FIELD)
        self._ending = f".{ending.removeprefix('.')}"
        self._others = others
        self._mirror = mirror
        self.mode = mode
        self._taken: dict[Path, str] = {}
        """Files of the folder that is written to, each with the item that it is about."""
        self.num_left = 0
        """Files that were there, with something else in them, and are left as they are."""
        self._settings = settings
        self._roots = [Path(os.path.abspath(root)) for root in roots]  # noqa: PTH100 - resolves no links

    def check(self, item: Item) -> None:
        """Raise `ConfigurationError` where nothing could be written about such an item."""
        self._place(item, self._ending)

    def has_all(self, item: Item, names: Sequence[str]) -> bool:
        """Whether an item's sidecars are there, one for each of the questions `names`. Blocks."""
        return all(path.exists() for path in self._files(item, names))

    def add(self, row: Row) -> None:
        """Write the captions of a row."""
        captions = captions_of(row, self._settings).values()
        for path, text in zip(self._files(row.item, list(row.lines)), captions, strict=True):
            if text is not None:
                self._take(path, row.item.id)
                self._write(path, text)

    def close(self, *, is_whole: bool) -> None:
        """Do nothing: every file is whole."""

    def _files(self, item: Item, names: Sequence[str]) -> list[Path]:
        endings = [self._ending, *(f".{name}{self._ending}" for name in names[1:])]
        return [self._place(item, ending) for ending in endings]

    def _place(self, item: Item, ending: str) -> Path:
        if self._mirror is None:
            if item.path is None:
                reason = f"{printable(item.id)} is no file that a sidecar could stand beside: --sidecar-dir says where"
                raise NoPlaceError(reason, field=_FIELD)
            return item.path.with_suffix(ending)
        return self._mirror / f"{self._below(item)}{ending}"

    def _below(self, item: Item) -> str:
        """Return an item's path below its root, or what stands for one, without ending."""
        if (path := item.path) is None or scheme_of(item.id):
            return path_of(item)
        whole = Path(os.path.abspath(path))  # noqa: PTH100
        root = next((root for root in self._roots if whole.is_relative_to(root)), whole.parent)
        return str(whole.relative_to(root).with_suffix(""))

    def _take(self, path: Path, item_id: str) -> None:
        """Raise `NoPlaceError` where an item before has this file, or the run itself."""
        if flag := self._others.get(os.path.realpath(path)):
            reason = f"{printable(path)}, of {printable(item_id)}: {flag} names this file already"
            raise NoPlaceError(reason, field=_FIELD)
        if self._taken and next(iter(self._taken)).parent != path.parent:
            self._taken.clear()  # a source goes through one folder after the other
        if (other := self._taken.setdefault(path, item_id)) != item_id:
            reason = f"{printable(path)} is about {printable(other)}, not {printable(item_id)}"
            raise NoPlaceError(reason, field=_FIELD)

    def _write(self, path: Path, text: str) -> None:
        there = self._there(path)
        if there is not None and self.mode in _KEEPING:
            self.num_left += there != text
            return
        wanted = text if there is None else self._joined(there, text)
        if wanted != there:
            with _placing(path):
                write_whole(path, wanted.encode(), field=_FIELD, is_synced=False)

    def _there(self, path: Path) -> str | None:
        with _placing(path), writing(path, field=_FIELD):
            try:
                return path.read_bytes().decode()
            except FileNotFoundError:
                return None
            except UnicodeDecodeError as error:
                if self.mode == "overwrite" or self.mode in _KEEPING:
                    return ""
                raise NoPlaceError(f"{printable(path)} is no UTF-8: nothing is added to it", field=_FIELD) from error

    def _joined(self, there: str, text: str) -> str:
        kept = there.strip()
        if self.mode == "overwrite" or not kept:
            return text
        if self.mode == "append":
            return there if kept == text or kept.endswith(_JOINT + text) else kept + _JOINT + text
        return there if kept == text or kept.startswith(text + _JOINT) else text + _JOINT + kept


@contextmanager
def _placing(path: Path) -> Iterator[None]:
    """Raise `NoPlaceError` where the system refuses this file alone."""
    try:
        yield
    except OutputError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _ABOUT_ONE_FILE:
            raise NoPlaceError(f"{printable(path)}: {cause.strerror}", field=_FIELD) from error
        raise
