"""Which threads do what a session's preparation takes: what may take long waits for its like, and nobody else for it.

                                                        threads
texts of many characters, together                      one, `long`
large pictures of a format that is decoded in one go    the same: their decoders keep the interpreter's lock
                                                        throughout, and several of them the event loop waiting
other large pictures                                    as many as there are, `wide`: most of the time is spent
                                                        without the lock
everything else                                         a few, `short`: more of them mostly wait for the lock, and
                                                        keep it from the thread that launches
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from broker_pipeline.errors import MediaError
from broker_pipeline.messages.jobs import ChatMessage, TextPart
from broker_pipeline.pictures.header import read_header
from broker_pipeline.pictures.rule import PictureHeader

T = TypeVar("T")

_LONG_CHARS = 65_536
"""Texts that are longer than this, together, take a prompt tenths of a second and more to lay out."""
_LARGE_PIXELS = 4_000_000
_WIDE_PIXELS = 1_000_000
MOST_SHORT_THREADS = 3
"""With eight, one H200 made 105 captions/s of 8B in FP8 with pictures of 448x448, with three 112."""
_DECODED_IN_PIECES = frozenset({"BMP", "GIF", "JPEG", "PNG", "TIFF"})
"""Of these Pillow decodes tens of kilobytes at a time, and lets others run meanwhile."""


@dataclass(frozen=True, slots=True)
class WorkPools:
    """Threads for short work, for pictures that take a while, and one for what keeps others waiting."""

    short: Executor
    wide: Executor
    long: Executor

    async def for_texts(self, messages: Sequence[ChatMessage], work: Callable[[], T]) -> T:
        """Do what depends on the texts of a conversation."""
        parts = (part for message in messages for part in message.content)
        num_chars = sum(len(part.text) for part in parts if isinstance(part, TextPart))
        return await _run(self.long if num_chars > _LONG_CHARS else self.short, work)

    async def for_pictures(self, contents: Sequence[bytes], work: Callable[[], T]) -> T:
        """Do what depends on pictures, given as their files."""
        pool = await _run(self.short, lambda: self._pool_of(contents))
        return await _run(pool, work)

    def _pool_of(self, contents: Sequence[bytes]) -> Executor:
        headers = [header for content in contents if (header := _header(content)) is not None]
        if any(_keeps_lock(header) for header in headers):
            return self.long
        return self.wide if sum(header.width * header.height for header in headers) >= _WIDE_PIXELS else self.short


async def _run(pool: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def _header(content: bytes) -> PictureHeader | None:
    try:
        return read_header(content)
    except MediaError:
        return None  # whoever decodes it will say the same, with its place


def _keeps_lock(header: PictureHeader) -> bool:
    return header.format not in _DECODED_IN_PIECES and header.width * header.height > _LARGE_PIXELS
