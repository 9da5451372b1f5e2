"""Who sees which pictures."""

from __future__ import annotations

import asyncio

import pytest
from nats.js.api import RawStreamMsg
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from broker_pipeline import subjects
from broker_pipeline.errors import MediaMissingError, SubjectDeniedError
from broker_pipeline.messages.jobs import MediaRef
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport
from tests.broker_pipeline.security.conftest import NAMESPACE, Guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = b"a picture that was sent in confidence " * 40_000  # two chunks


async def test_a_vision_worker_sees_what_it_was_told_the_name_of_and_nothing_else(guarded: Guarded) -> None:
    ref = await _store(guarded)
    async with Transport.open(guarded.nats.url, name="v", credentials=guarded.credentials("vision")) as transport:
        store = MediaStore(transport, None, NAMESPACE)
        assert await store.get(ref) == PICTURE
        with pytest.raises(MediaMissingError):
            await store.get(MediaRef(sha256=ref.sha256, object_name=f"{ref.sha256}.0", num_bytes=ref.num_bytes))
        found = await _walk(transport.jetstream(for_bulk=True))
        assert sum(len(message.data or b"") for message in found) > len(PICTURE)
        assert not [message for message in found if b"picture" in (message.data or b"")]


async def test_a_stage_sees_no_picture(guarded: Guarded) -> None:
    ref = await _store(guarded)
    async with Transport.open(guarded.nats.url, name="s", credentials=guarded.credentials("stage")) as transport:
        reading = asyncio.ensure_future(MediaStore(transport, None, NAMESPACE).get(ref))
        with pytest.raises(SubjectDeniedError, match="s-bulk may not do this"):
            await asyncio.wait_for(transport.wait_failed(), 10)
        reading.cancel()
        await asyncio.wait({reading})


async def _store(guarded: Guarded) -> MediaRef:
    credentials = guarded.credentials("gateway")
    async with (
        Transport.open(guarded.nats.url, name="g", credentials=credentials) as transport,
        open_redis(guarded.redis.url, credentials=credentials) as redis,
    ):
        store = MediaStore(transport, redis, NAMESPACE, 64 * 2**20)
        await store.ensure()
        return await store.put(PICTURE, "j1")


async def _walk(jetstream: JetStreamContext) -> list[RawStreamMsg]:
    """Read all that the streams hold, as whoever may read them can."""
    found = []
    for shard in range(subjects.NUM_MEDIA_STREAMS):
        stream, sequence = subjects.media_stream(NAMESPACE, shard), 1
        while True:
            try:
                message = await jetstream.get_msg(
                    stream, seq=sequence, subject=f"{NAMESPACE}.media.{shard}.*", direct=True, next=True
                )
            except NotFoundError:
                break
            found.append(message)
            sequence = int(message.seq or 0) + 1
    return found
