"""Bytes of files in one JetStream stream, each chunk under a subject of its own.

    {namespace}-files                    the stream
    {namespace}.files.{part}.{index}     chunk number `index` of a part, whose name is used once

Unlike media, a part is written and read chunk by chunk, from any chunk on, so that files may be larger than memory. The
stream is made by whoever stores the first chunk: a gateway whose users have no files reserves no room for them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from broker_pipeline import subjects
from broker_pipeline.errors import FileUnknownError, QueueFullError, RequestTimeoutError, TransportError
from broker_pipeline.storage.jetstream import ensure_stream, is_missing, jetstream_errors
from broker_pipeline.wire.nats.jetstream import JetStream

CHUNK_BYTES = 2**20
MAX_AGE_S = 31 * 24 * 3600.0
"""Longer than any file is kept: what nobody knows of any more goes by itself."""
_ACTION = "the file store"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Part:
    """A run of bytes that was written at once, in chunks of `chunk_bytes`, the last one shorter."""

    name: str
    num_bytes: int
    chunk_bytes: int


class FileChunks:
    """The chunks of one namespace. Every method raises `TransportError` when JetStream does not answer."""

    def __init__(self, jetstream: JetStream, namespace: str, sizes: Sequence[int], *, num_replicas: int = 1) -> None:
        """Make the stream, when it is needed, of the first of `sizes` (in bytes) for which the server has room."""
        self._jetstream = jetstream
        self._namespace = namespace
        self._stream = subjects.file_stream(namespace)
        self._sizes = sizes
        self._num_replicas = num_replicas

    @property
    def chunk_bytes(self) -> int:
        """How long chunks of a new part shall be."""
        return min(CHUNK_BYTES, self._jetstream.max_message_bytes)

    async def put(self, part: str, index: int, content: bytes) -> None:
        """Store a chunk. Raises `QueueFullError` when there is no room."""
        try:
            await self._put(part, index, content)
        except RequestTimeoutError:
            raise
        except TransportError:
            if not await is_missing(self._jetstream, self._stream):
                raise
            await self._make()
            await self._put(part, index, content)

    async def read(self, part: Part, start: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the part's bytes from offset `start` on; raises `FileUnknownError` where they are gone."""
        skipped = start % part.chunk_bytes
        for index in range(start // part.chunk_bytes, -(-part.num_bytes // part.chunk_bytes)):
            content = await self._get(part.name, index, direct=True) or await self._get(part.name, index, direct=False)
            if len(content) != min(part.chunk_bytes, part.num_bytes - index * part.chunk_bytes):
                raise FileUnknownError(f"the file store has lost a part of this file ({part.name}, chunk {index})")
            yield content[skipped:]
            skipped = 0

    async def delete(self, part: str) -> None:
        """Remove a part, also one that is not whole or not there."""
        with jetstream_errors(_ACTION), suppress(NotFoundError):
            await self._jetstream.purge_stream(self._stream, subject=self._subject(part, "*"))

    async def _put(self, part: str, index: int, content: bytes) -> None:
        with jetstream_errors(_ACTION):
            await self._jetstream.publish(self._subject(part, index), content)

    async def _get(self, part: str, index: int, *, direct: bool) -> bytes:
        """Return a chunk, or nothing; what a follower of the stream does not have yet, its leader may have."""
        try:
            with jetstream_errors(_ACTION), suppress(NotFoundError):
                subject = self._subject(part, index)
                return (await self._jetstream.get_last_msg(self._stream, subject, direct=direct)).data or b""
        except TransportError:
            if not await is_missing(self._jetstream, self._stream):
                raise
        return b""

    async def _make(self) -> None:
        refused: QueueFullError | None = None
        for max_bytes in self._sizes:
            try:
                await ensure_stream(self._jetstream, self._config(max_bytes), update=False)
            except QueueFullError as error:
                refused = error
            else:
                log.info("file_store_made", stream=self._stream, max_bytes=max_bytes)
                return
        raise refused or QueueFullError("the file store may hold nothing")

    def _subject(self, part: str, index: int | str) -> str:
        return subjects.file_chunk(self._namespace, part, index)

    def _config(self, max_bytes: int) -> StreamConfig:
        return StreamConfig(
            name=self._stream,
            description="files of broker-pipeline's batches",
            subjects=[self._subject("*", "*")],
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_bytes=max_bytes,
            max_age=MAX_AGE_S,
            allow_direct=True,
            num_replicas=self._num_replicas,
        )
