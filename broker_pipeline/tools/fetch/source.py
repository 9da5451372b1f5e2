"""Where an artifact's files come from, and one such place: a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from broker_pipeline.artifact_files.contents import FileContent
from broker_pipeline.errors import FetchError

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes of a file from `start` on, which is 0 where its source can only begin at the beginning."""

    start: int
    pieces: AsyncIterator[bytes]


class Source(Protocol):
    """A place with an artifact's files. What it says may be wrong: whoever reads compares it with the manifest.

    Raises `FetchError`, and `FetchInterruptedError` where the same request may succeed a moment later.
    """

    async def read_small(self, name: str, max_bytes: int) -> bytes:
        """Return a whole small file."""

    def reading(self, content: FileContent, start: int) -> AbstractAsyncContextManager[Stream]:
        """Return the bytes of a file, from `start` on where that is possible."""


class DirectorySource:
    """A directory of this host, mounted ones included."""

    def __init__(self, directory: Path) -> None:
        """Read from `directory`."""
        self.directory = directory

    def __str__(self) -> str:
        return str(self.directory)

    async def read_small(self, name: str, max_bytes: int) -> bytes:
        """Return a whole small file; see `Source`."""
        file, size_bytes = await asyncio.to_thread(self._open, name)
        with file:
            if size_bytes > max_bytes:
                raise FetchError(f"{self.directory / name} has {size_bytes} bytes, which is no {name}")
            return await asyncio.to_thread(file.read)

    @asynccontextmanager
    async def reading(self, content: FileContent, start: int) -> AsyncIterator[Stream]:
        """Return the bytes of a file from `start` on; see `Source`."""
        file, size_bytes = await asyncio.to_thread(self._open, content.name)
        with file:
            check_size(content, size_bytes, str(self))
            file.seek(start)
            yield Stream(start, self._pieces(file))

    def _open(self, name: str) -> tuple[BinaryIO, int]:
        path = self.directory / name
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise missing(name, str(self)) from error
        except OSError as error:
            raise FetchError(f"cannot read {path}: {error.strerror}", field=name) from error
        size_bytes = file.seek(0, 2)
        file.seek(0)
        return file, size_bytes

    async def _pieces(self, file: BinaryIO) -> AsyncIterator[bytes]:
        try:
            while piece := await asyncio.to_thread(file.read, _READ_BYTES):
                yield piece
        except OSError as error:
            raise FetchError(f"cannot read {file.name}: {error.strerror}") from error


def check_size(content: FileContent, size_bytes: int, source: str) -> None:
    """Raise `FetchError` where a source has a file of another size than the manifest says."""
    if size_bytes != content.size_bytes:
        raise FetchError(
            f"{content.name} has {size_bytes} bytes at {source}, and its manifest says {content.size_bytes}: that is "
            "damaged, or still being written; `broker-pipeline export verify` says so there",
            field=content.name,
        )


def missing(name: str, source: str) -> FetchError:
    """Return the error for a file that a source does not have."""
    return FetchError(
        f"{source} has no {name}; name the directory of a whole artifact, with its weights_manifest.json", field=name
    )
