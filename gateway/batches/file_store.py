"""Files: bytes in JetStream, chunk by chunk, and in Redis what they are called and where their parts are.

writer.write … ──► parts, doomed to be deleted in an hour ──► create: a file has them ──► delete, or expiry
                               │                                                             │
                               └── writer died ──► sweep deletes them ◄─── doomed now ◄──────┘
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from broker_pipeline import redis_keys
from broker_pipeline.errors import FileInUseError, FileUnknownError, PipelineError, TransportError
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.storage.file_chunks import FileChunks, Part
from gateway.batches.records import FileObject
from gateway.batches.scripts import as_fields, batch_scripts, page_of_ids, read_rows

MONTH_S = 30 * 24 * 3600
WRITER_BYTES = 4 * 2**20
READER_BYTES = 2 * 2**20
"""Memory that it takes to write a part, and to read a file, about."""
_UPLOAD_S = 3600.0
_DOOM_EVERY = 64
"""So many chunks, and an hour begins anew: uploads may last."""
_NUM_SWEPT = 128
_CLAIM_S = 60.0
_IN_USE_S = 3600.0


class FileStore:
    """The files of one namespace. Everything raises `StateError` or `TransportError` where a server does not answer."""

    def __init__(self, redis: RedisClient, chunks: FileChunks, namespace: str) -> None:
        self._redis = redis
        self._chunks = chunks
        self._namespace = namespace
        self._run = batch_scripts(redis, namespace)

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[PartWriter]:
        """Write a part; unless somebody takes it (`create`, or a batch), it is deleted: at once after an error."""
        writer = PartWriter(self, self._chunks)
        try:
            yield writer
        except BaseException:
            await asyncio.shield(self._discard(writer.name))
            raise

    async def doom(self, name: str) -> None:
        """Have a part deleted in an hour, unless a file has it by then."""
        await self._run("doom", {"name": name, "after_s": _UPLOAD_S}, "cannot store a file")

    async def create(
        self, part: Part, *, tenant: str, filename: str, purpose: str, lives_s: int = MONTH_S
    ) -> FileObject:
        """Make a file of a part, for `lives_s` seconds."""
        file_id = new_id("file-")
        fields = as_fields({"filename": filename, "purpose": purpose, "bytes": part.num_bytes})
        args = {"file_id": file_id, "tenant": tenant, "lives_s": lives_s, "parts": [encoded(part)], "fields": fields}
        if not await self._run("create_file", args, "cannot record a file"):
            raise TransportError("storing the file took too long; try again")
        return await self.get(file_id, tenant)

    async def get(self, file_id: str, tenant: str) -> FileObject:
        """Return a tenant's file. Raises `FileUnknownError`."""
        rows = await read_rows(self._redis, [redis_keys.file(self._namespace, file_id)], _Row, [file_id])
        if not rows or rows[0].tenant != tenant:
            raise FileUnknownError(f"no file {file_id}: it never was, or it was deleted", field="file_id")
        return rows[0].shown()

    async def page(self, tenant: str, limit: int, **where: Any) -> tuple[list[FileObject], bool]:
        """Return a page of files (`after`, `purpose`, `is_descending`), and whether there are more."""
        ids, has_more = await page_of_ids(self._run, "files", tenant, limit, **where)
        rows = await read_rows(self._redis, [redis_keys.file(self._namespace, one) for one in ids], _Row, ids)
        return [row.shown() for row in rows], has_more

    async def delete(self, file_id: str, tenant: str) -> None:
        """Delete a file. Raises `FileUnknownError`, or `FileInUseError` while a batch reads it."""
        outcome = await self._run("delete_file", {"file_id": file_id, "tenant": tenant}, f"cannot delete {file_id}")
        if outcome == -1:
            raise FileUnknownError(f"no file {file_id}: it never was, or it was deleted", field="file_id")
        if outcome == 0:
            raise FileInUseError(f"a batch that has not ended reads {file_id}; cancel it first", field="file_id")

    async def read(self, file_id: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield a file's bytes from offset `start` on. Raises `FileUnknownError` where they are gone."""
        with state_errors(f"cannot read {file_id}"):
            key = redis_keys.file_parts(self._namespace, file_id)
            rows: list[bytes] = await self._redis.lrange(key, 0, -1)  # type: ignore[assignment]
            parts = [_decoded(row) for row in rows]
        if not parts:
            raise FileUnknownError(f"no file {file_id}: it never was, or it was deleted", field="file_id")
        for part in parts:
            if start < part.num_bytes:
                async with aclosing(self._chunks.read(part, start)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            start = max(0, start - part.num_bytes)

    async def sweep(self) -> int:
        """Delete what nobody needs (any more), files and batches whose time has come; return the number of parts.

        Any number of processes may do this at once. One that dies half-way leaves its work to the next.
        """
        num_deleted = 0
        args = {"limit": _NUM_SWEPT, "claim_s": _CLAIM_S, "keep_s": _IN_USE_S}
        while names := await self._run("sweep", args, "cannot sweep files"):
            for name in names:
                await self._delete(name.decode())
            num_deleted += len(names)
        return num_deleted

    async def _delete(self, name: str) -> None:
        await self._chunks.delete(name)
        with state_errors("cannot forget a part of a file"):
            await self._redis.zrem(redis_keys.files_doomed(self._namespace), name)

    async def _discard(self, name: str) -> None:
        try:
            await self._delete(name)
        except PipelineError:
            return  # it is doomed: a sweep does it


class PartWriter:
    """Writes one part, in memory no more than a chunk of it."""

    def __init__(self, files: FileStore, chunks: FileChunks) -> None:
        self.name = secrets.token_hex(16)
        self.num_bytes = 0
        self._files = files
        self._chunks = chunks
        self._chunk_bytes = chunks.chunk_bytes
        self._index = 0
        self._held = bytearray()

    async def write(self, content: bytes | bytearray) -> None:
        """Take some bytes. Raises `QueueFullError` when the store is full."""
        self._held += content
        self.num_bytes += len(content)
        while len(self._held) >= self._chunk_bytes:
            await self._put(self._chunk_bytes)

    async def close(self) -> Part:
        """Store what is left and return the part, which is not empty."""
        if self._held:
            await self._put(len(self._held))
        return Part(self.name, self.num_bytes, self._chunk_bytes)

    async def _put(self, num_bytes: int) -> None:
        if self._index % _DOOM_EVERY == 0:
            await self._files.doom(self.name)
        await self._chunks.put(self.name, self._index, bytes(memoryview(self._held)[:num_bytes]))
        del self._held[:num_bytes]
        self._index += 1


class _Row(FileObject, frozen=True, kw_only=True):
    """A file's hash: what it shows, whose it is, and how many batches read it."""

    tenant: str
    num_readers: int = 0

    def shown(self) -> FileObject:
        return FileObject(**{name: getattr(self, name) for name in FileObject.__struct_fields__})


def new_id(prefix: str) -> str:
    """Return an id that sorts by time of creation."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def encoded(part: Part) -> str:
    """Return a part as Redis keeps it."""
    return f"{part.name} {part.num_bytes} {part.chunk_bytes}"


def _decoded(row: bytes) -> Part:
    name, num_bytes, chunk_bytes = row.decode().split(" ")
    return Part(name, int(num_bytes), int(chunk_bytes))
