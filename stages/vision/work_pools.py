"""Which threads do what a session's preparation takes: what may take long waits for its like, and nobody else for it.

                                                        threads
texts of many characters, together                      one, `long`
large pictures of a format that is decoded in one go    the same: their decoders keep the interpreter's lock
                                                        throughout, and several of them the event loop waiting
everything else                                         `short`
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

T = TypeVar("T")

_LONG_CHARS = 65_536
"""Texts that are longer than this, together, take a prompt tenths of a second and more to lay out."""
_LARGE_PIXELS = 4_000_000
_DECODED_IN_PIECES = frozenset({"BMP", "GIF", "JPEG", "PNG", "TIFF"})
"""Of these Pillow decodes tens of kilobytes at a time, and lets others run meanwhile."""


@dataclass(frozen=True, slots=True)
class WorkPools:
    """Threads for short work, and one for what takes long."""

    short: Executor
    long: Executor

    async def for_texts(self, messages: Sequence[ChatMessage], work: Callable[[], T]) -> T:
        """Do what depends on the texts of a conversation."""
        parts = (part for message in messages for part in message.content)
        num_chars = sum(len(part.text) for part in parts if isinstance(part, TextPart))
        return await _run(self.long if num_chars > _LONG_CHARS else self.short, work)

    async def for_pictures(self, contents: Sequence[bytes], work: Callable[[], T]) -> T:
        """Do what depends on pictures, given as their files."""
        keeps_lock = await _run(self.short, lambda: any(map(_keeps_lock, contents)))
        return await _run(self.long if keeps_lock else self.short, work)


async def _run(pool: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def _keeps_lock(content: bytes) -> bool:
    try:
        header = read_header(content)
    except MediaError:
        return False  # whoever decodes it will say the same, with its place
    return header.format not in _DECODED_IN_PIECES and header.width * header.height > _LARGE_PIXELS
