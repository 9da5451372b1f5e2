"""A list of paths and URLs as a source: a file of them, or standard input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import BinaryIO

from broker_pipeline.captioning.sources.item import Item, broken
from broker_pipeline.captioning.sources.location import named_in
from broker_pipeline.captioning.sources.named_item import item_at
from broker_pipeline.captioning.sources.opening import media_error, open_stream
from broker_pipeline.errors import InvalidRequestError, UnreadableFileError

_CHUNK_BYTES = 1 << 14
_MAX_NAME_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"


class ListSource:
    """A list. Its items are called as their files; a file that it names twice is two items of one name."""

    def __init__(
        self,
        name: str,
        base: str,
        open_list: Callable[[], AbstractContextManager[BinaryIO]],
        separator: bytes = b"\n",
        *,
        is_read_once: bool = False,
    ) -> None:
        """Prepare to read a list whose relative paths are beside `base`."""
        self.name = name
        self.is_read_once = is_read_once
        self._base = base
        self._open = open_list
        self._separator = separator

    def count(self) -> None:
        """Return None: nobody knows without reading all of it."""

    def __iter__(self) -> Iterator[Item]:
        """Yield what the lines name; empty ones name nothing."""
        try:
            with self._open() as stream:
                for number, text in enumerate(_split(stream, self._separator)):
                    if text:
                        yield self._item(number, os.fsdecode(text))
        except Exception as error:  # noqa: BLE001 - every file system has its own
            yield broken(self.name, media_error(self.name, error))

    def _item(self, number: int, text: str) -> Item:
        try:
            location = named_in(self._base, text)
        except UnreadableFileError as error:
            return broken(f"{self.name}#{number}", error)
        return item_at(location, location)


def list_file(name: str) -> ListSource:
    """Return the source of a file with a path or URL on each line; relative paths are beside the file."""
    return ListSource(name, name, partial(open_stream, name))


def files_from(stream: BinaryIO, *, is_nul_separated: bool = False, name: str = "-") -> ListSource:
    """Return the source of a list that is open; relative paths start at the working directory.

    A stream that cannot seek is read once: `InvalidRequestError` the second time.
    """
    start = stream.tell() if stream.seekable() else None
    unread = iter([stream])

    def open_list() -> AbstractContextManager[BinaryIO]:
        if start is not None:
            stream.seek(start)
        elif next(unread, None) is None:
            raise InvalidRequestError(f"{name} can be read only once", field="files_from")
        return nullcontext(stream)

    return ListSource(name, "", open_list, b"\0" if is_nul_separated else b"\n", is_read_once=start is None)


def _split(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    rest = stream.read(_CHUNK_BYTES).removeprefix(_BOM)
    while chunk := stream.read(_CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(separator)
        yield from (_stripped(text, separator) for text in whole)
        if len(rest) > _MAX_NAME_BYTES:
            raise UnreadableFileError(f"no path or URL is so long: are they separated by {separator!r}?")
    yield from (_stripped(text, separator) for text in rest.split(separator))


def _stripped(text: bytes, separator: bytes) -> bytes:
    return text.removesuffix(b"\r") if separator == b"\n" else text
