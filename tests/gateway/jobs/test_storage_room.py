"""A small disk makes a smaller store, not a gateway that cannot start."""

from __future__ import annotations

import msgspec
import pytest
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.wire.transport import Transport
from gateway.jobs.storage_room import open_media, open_queue
from gateway.settings import MIB, GatewaySettings

LEAST = 256 * MIB


async def fill(transport: Transport) -> str:
    """Reserve all that JetStream has, in pieces of falling size; return the name of a piece of `LEAST`."""
    jetstream = transport.jetstream()
    await jetstream.add_stream(StreamConfig(name="spare", subjects=["spare"], max_bytes=LEAST))
    size, number = 2**50, 0
    while size >= MIB:
        try:
            await jetstream.add_stream(StreamConfig(name=f"f{number}", subjects=[f"f{number}"], max_bytes=size))
        except APIError:
            size //= 2
        else:
            number += 1
    return "spare"


async def test_the_default_room_shrinks_until_it_fits_and_a_chosen_one_is_refused(
    own_nats: EmbeddedNats, redis: RedisClient, settings: GatewaySettings, jpeg: bytes
) -> None:
    anything = msgspec.structs.replace(settings, media_max_bytes=None, queue_max_bytes=None)
    async with Transport.open(own_nats.url, name="test") as transport:
        spare = await fill(transport)
        with pytest.raises(ConfigurationError, match="--max-media-mb"):
            await open_media(transport, redis, msgspec.structs.replace(settings, media_max_bytes=2 * LEAST))
        await transport.jetstream().delete_stream(spare)
        media = await open_media(transport, redis, anything)
        await open_queue(transport, anything)
        ref = await media.put(jpeg, "job")
        assert await media.get(ref) == jpeg
