"""Bytes in a JetStream object store, addressed by names that are used once.

The layout is that of NATS object stores, so that `nats object` shows and fetches what is here:

    $O.{bucket}.C.{id}            chunks of one object, in order
    $O.{bucket}.M.{base64 name}   its JSON description, written last

nats-py's own object store is not used for reading and deleting: its `get` waits without end for chunks that were
purged meanwhile, and its `delete` leaves a description behind for ever. Here chunks are read one request at a time,
so that what is missing is an answer, and a deleted object leaves nothing. The id of an object follows from its name,
so that reading it needs no look at its description, and an unfinished upload can be deleted by its name.

A bucket that was deleted behind our back holds nothing; whoever stores something makes it again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import structlog
from nats.js.api import DiscardPolicy, RawStreamMsg, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from broker_pipeline.errors import RequestTimeoutError, TransportError
from broker_pipeline.storage.jetstream import ensure_stream, is_missing, jetstream_errors

log = structlog.get_logger()

CHUNK_BYTES = 2**20
_ROLLUP = {"Nats-Rollup": "sub"}


@dataclass(frozen=True, slots=True)
class ObjectBucket:
    """One object store. Every method raises `TransportError` when JetStream does not answer."""

    jetstream: JetStreamContext
    bucket: str
    max_bytes: int
    max_age_s: float
    num_replicas: int = 1

    async def ensure(self, *, update: bool = True) -> None:
        """Make the bucket, or, with `update`, give an existing one these limits."""
        await ensure_stream(self.jetstream, self._config(), update=update)

    async def put(self, name: str, content: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Store `content` under a name that was never used.

        The last chunk and the description are under way together, since each waits for a disk.

        Raises `QueueFullError` when the bucket has no room. Whatever it raises, parts of the object may be there:
        `delete` removes them.
        """
        try:
            await self._put(name, content, chunk_bytes)
        except RequestTimeoutError:
            raise
        except TransportError as error:
            if not await is_missing(self.jetstream, self._stream):
                raise
            log.warning("media_store_lost", stream=self._stream, reason=error.message)
            await self.ensure()
            await self._put(name, content, chunk_bytes)

    async def _put(self, name: str, content: bytes, chunk_bytes: int) -> None:
        view = memoryview(content)
        with jetstream_errors("the media store"):
            last = max(0, len(view) - 1) // chunk_bytes * chunk_bytes
            for start in range(0, last, chunk_bytes):
                await self.jetstream.publish(self._chunks(name), bytes(view[start : start + chunk_bytes]))
            description = self._describe(name, content, chunk_bytes)
            publishing = [self.jetstream.publish(self._chunks(name), bytes(view[last:]))] if content else []
            publishing.append(self.jetstream.publish(self._description(name), description, headers=dict(_ROLLUP)))
            for done in await asyncio.gather(*publishing, return_exceptions=True):
                if isinstance(done, BaseException):
                    raise done

    async def get(self, name: str, num_bytes: int) -> bytes | None:
        """Return the object's bytes; None when it is not there, not whole, or not of `num_bytes` bytes."""
        content = bytearray()
        sequence = 1
        while len(content) < num_bytes:
            chunk = await self._next(self._chunks(name), sequence)
            if chunk is None or not chunk.data:
                return None
            content += chunk.data
            sequence = int(chunk.seq or 0) + 1
        return bytes(content) if len(content) == num_bytes else None

    async def age_s(self, name: str) -> float | None:
        """Return for how long the object has been there, or None."""
        found = await self._next(self._description(name), 1)
        if found is None or found.time is None:
            return None
        return (datetime.now(UTC) - found.time).total_seconds()

    async def delete(self, name: str) -> None:
        """Remove an object, also one that is not whole or not there."""
        with jetstream_errors("the media store"), suppress(NotFoundError):
            await self.jetstream.purge_stream(self._stream, subject=self._description(name))
            await self.jetstream.purge_stream(self._stream, subject=self._chunks(name))

    async def size_bytes(self) -> int:
        """Return how many bytes the bucket holds, overhead included."""
        with jetstream_errors("the media store"):
            try:
                info = await self.jetstream.stream_info(self._stream)
            except NotFoundError:
                return 0
        return int(info.state.bytes)

    async def _next(self, subject: str, sequence: int) -> RawStreamMsg | None:
        try:
            with jetstream_errors("the media store"), suppress(NotFoundError):
                return await self.jetstream.get_msg(self._stream, seq=sequence, subject=subject, direct=True, next=True)
        except TransportError:
            if not await is_missing(self.jetstream, self._stream):
                raise
        return None

    @property
    def _stream(self) -> str:
        return f"OBJ_{self.bucket}"

    def _chunks(self, name: str) -> str:
        return f"$O.{self.bucket}.C.{_object_id(name)}"

    def _description(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    def _describe(self, name: str, content: bytes, chunk_bytes: int) -> bytes:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
        facts = {
            "name": name,
            "bucket": self.bucket,
            "nuid": _object_id(name),
            "size": len(content),
            "chunks": -(-len(content) // chunk_bytes),
            "digest": f"SHA-256={digest}",
            "mtime": datetime.now(UTC).isoformat(),
            "options": {"max_chunk_size": chunk_bytes},
        }
        return orjson.dumps(facts)

    def _config(self) -> StreamConfig:
        return StreamConfig(
            name=self._stream,
            description="images and videos that jobs of broker-pipeline need",
            subjects=[f"$O.{self.bucket}.C.>", f"$O.{self.bucket}.M.>"],
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_bytes=self.max_bytes,
            max_age=self.max_age_s,
            allow_rollup_hdrs=True,
            allow_direct=True,
            num_replicas=self.num_replicas,
        )


def _object_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]
