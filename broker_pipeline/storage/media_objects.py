"""Bytes in JetStream streams, addressed by names that are used once.

    {namespace}-media-{shard}          streams; the hash of an object's name says which
    {namespace}.media.{shard}.{hash}   chunks of one object, in order

Several streams, since a server that syncs every message waits for the disk within each stream one message after the
other: with one stream, submissions with pictures ended at a few hundred a second. For the same reason an object has no
description, as NATS' own object stores have, but its chunks only: who reads it knows its size and digest.

The subject of an object follows from its name, so that an unfinished upload can be deleted by its name. Chunks are read
one request at a time, so that what is missing is an answer.

So does the key that its chunks are encrypted with, where servers know who may do what: whoever may read the streams, as
vision workers do, sees what he was told the name of, and nothing else. A header says so of each chunk.

A stream that was deleted behind our back holds nothing; whoever stores something makes it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nats.js.api import DiscardPolicy, RawStreamMsg, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from broker_pipeline import subjects
from broker_pipeline.errors import RequestTimeoutError, TransportError
from broker_pipeline.storage.jetstream import ensure_stream, is_missing, jetstream_errors

log = structlog.get_logger()

CHUNK_BYTES = 2**20
_TAG_BYTES = 16
_ENCRYPTED = {"Bp-Encrypted": "1"}
_INLINE_BYTES = 256 * 1024

NUM_STREAMS = subjects.NUM_MEDIA_STREAMS


@dataclass(frozen=True, slots=True)
class MediaObjects:
    """The objects of one namespace. Every method raises `TransportError` when JetStream does not answer."""

    jetstream: JetStreamContext
    namespace: str
    max_bytes: int
    max_age_s: float
    num_replicas: int = 1
    encrypts: bool = False

    async def ensure(self, *, update: bool = True) -> None:
        """Make the streams, or, with `update`, give existing ones these limits."""
        for shard in range(NUM_STREAMS):  # in order: room that one gives up may be what the next needs
            await ensure_stream(self.jetstream, self._config(shard), update=update)

    async def put(self, name: str, content: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Store `content`, which is not empty, under a name that was never used.

        Raises `QueueFullError` when its stream has no room. Whatever it raises, parts of the object may be there:
        `delete` removes them.
        """
        try:
            await self._put(name, content, chunk_bytes)
        except RequestTimeoutError:
            raise
        except TransportError as error:
            stream = self._stream(_shard(name))
            if not await is_missing(self.jetstream, stream):
                raise
            log.warning("media_store_lost", stream=stream, reason=error.message)
            await self.ensure()
            await self._put(name, content, chunk_bytes)

    async def _put(self, name: str, content: bytes, chunk_bytes: int) -> None:
        cipher, plain_bytes = _cipher(name), chunk_bytes - _TAG_BYTES
        for index, start in enumerate(range(0, len(content), plain_bytes)):
            chunk = content[start : start + plain_bytes]
            if self.encrypts:
                chunk = await _off_loop(cipher.encrypt, _nonce(index), chunk)
            with jetstream_errors("the media store"):
                await self.jetstream.publish(self._subject(name), chunk, headers=_ENCRYPTED if self.encrypts else None)

    async def get(self, name: str, num_bytes: int) -> bytes | None:
        """Return the object's bytes; None when it is not there, not whole, or not of `num_bytes` bytes."""
        content, cipher, sequence = bytearray(), _cipher(name), 1
        for index in itertools.count():
            chunk = await self._next(name, sequence)
            if chunk is None or not chunk.data:
                return None
            try:
                is_plain = not _ENCRYPTED.keys() & (chunk.headers or {}).keys()  # the server adds headers of its own
                content += chunk.data if is_plain else await _off_loop(cipher.decrypt, _nonce(index), chunk.data)
            except InvalidTag:
                return None
            if len(content) >= num_bytes:
                break
            sequence = int(chunk.seq or 0) + 1
        return bytes(content) if len(content) == num_bytes else None

    async def age_s(self, name: str) -> float | None:
        """Return for how long the object has been there, or None."""
        found = await self._next(name, 1)
        if found is None or found.time is None:
            return None
        return (datetime.now(UTC) - found.time).total_seconds()

    async def delete(self, name: str) -> None:
        """Remove an object, also one that is not whole or not there."""
        with jetstream_errors("the media store"), suppress(NotFoundError):
            await self.jetstream.purge_stream(self._stream(_shard(name)), subject=self._subject(name))

    async def size_bytes(self) -> int:
        """Return how many bytes all objects take, overhead included."""
        return sum(await self._sizes())

    async def fullness(self) -> float:
        """Return the share of its room that the fullest stream has used."""
        return max(await self._sizes()) * NUM_STREAMS / self.max_bytes

    async def _sizes(self) -> list[int]:
        sizes = [0] * NUM_STREAMS
        with jetstream_errors("the media store"):
            for shard in range(NUM_STREAMS):
                with suppress(NotFoundError):
                    sizes[shard] = (await self.jetstream.stream_info(self._stream(shard))).state.bytes
        return sizes

    async def _next(self, name: str, sequence: int) -> RawStreamMsg | None:
        stream, subject = self._stream(_shard(name)), self._subject(name)
        try:
            with jetstream_errors("the media store"), suppress(NotFoundError):
                return await self.jetstream.get_msg(stream, seq=sequence, subject=subject, direct=True, next=True)
        except TransportError:
            if not await is_missing(self.jetstream, stream):
                raise
        return None

    def _stream(self, shard: int) -> str:
        return subjects.media_stream(self.namespace, shard)

    def _subject(self, name: str) -> str:
        return subjects.media(self.namespace, _shard(name), _digest(name)[:32])

    def _config(self, shard: int) -> StreamConfig:
        return StreamConfig(
            name=self._stream(shard),
            description="images and videos that jobs of broker-pipeline need",
            subjects=[subjects.media(self.namespace, shard, "*")],
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_bytes=self.max_bytes // NUM_STREAMS,
            max_age=self.max_age_s,
            allow_direct=True,
            num_replicas=self.num_replicas,
        )


def _cipher(name: str) -> AESGCM:
    """Return the cipher of one object, whose name nobody guesses: it has 64 random bits, and is used once."""
    return AESGCM(hashlib.sha256(f"key of {name}".encode()).digest())


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")


async def _off_loop(work: Callable[[bytes, bytes, None], bytes], nonce: bytes, data: bytes) -> bytes:
    if len(data) <= _INLINE_BYTES:
        return work(nonce, data, None)
    return await asyncio.to_thread(work, nonce, data, None)


def _shard(name: str) -> int:
    return int(_digest(name)[-8:], 16) % NUM_STREAMS


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
