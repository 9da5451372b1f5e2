"""What a `tcp` edge carries arrives as it was sent, whatever its size, order and speed."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import EdgeFullError, EdgeLostError, PartError
from broker_pipeline.messages.edges import EdgeRef
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.tcp.layout import CHANNELS, channel_for
from tests.broker_pipeline.wire.edges.tcp.tcp_pair import fill, large_frame, random_frame, taken, tcp_pair
from tests.kit.waiting import eventually

KIB, MIB = 2**10, 2**20
SMALL, MEDIUM, _ = (limits.max_payload_bytes for limits in CHANNELS)
SIZES = st.lists(
    st.one_of(st.integers(1, 100), st.sampled_from([SMALL, SMALL + 1, 512 * KIB, MEDIUM, MEDIUM + 1]))
    | st.integers(1, 3 * MIB),
    min_size=1,
    max_size=6,
)


@pytest.fixture(params=[True, False], ids=["tls", "plain"])
def is_encrypted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@settings(max_examples=12, deadline=None)
@given(sizes=SIZES, is_encrypted=st.booleans())
def test_every_byte_arrives(new_loop: object, sizes: list[int], is_encrypted: bool) -> None:
    async def go() -> None:
        async with tcp_pair(is_encrypted=is_encrypted) as pair:
            frames = [random_frame(size) for size in sizes]
            refs = await asyncio.gather(*(pair.outgoing.send(frame) for frame, _ in frames))
            for ref, (_, content) in zip(reversed(refs), reversed(frames), strict=True):
                assert await taken(pair.incoming, ref) == content

    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]
        runner.run(go())


async def test_bytes_may_change_once_send_has_returned(is_encrypted: bool) -> None:
    async with tcp_pair(is_encrypted=is_encrypted) as pair:
        content = bytearray(b"a" * 16 * MIB)
        ref = await pair.outgoing.send(Frame(b"{}", (memoryview(content),), len(content)))
        content[:] = b"b" * len(content)
        assert await taken(pair.incoming, ref) == b"a" * len(content)


async def test_a_small_payload_passes_larger_ones_for_which_there_is_no_room(is_encrypted: bool) -> None:
    async with tcp_pair(is_encrypted=is_encrypted) as pair:
        refs, waiting = await fill(pair, 1)
        frame, content = random_frame(8 * KIB)
        ref = await asyncio.wait_for(pair.outgoing.send(frame), 2)
        assert await asyncio.wait_for(taken(pair.incoming, ref), 2) == content
        assert not waiting.done()
        assert pair.incoming.num_waiting * MEDIUM <= CHANNELS[1].room_bytes
        for ref in refs:
            await taken(pair.incoming, ref)
        await taken(pair.incoming, await asyncio.wait_for(waiting, 5))


async def test_each_payload_can_be_taken_once_and_only_as_what_it_is() -> None:
    async with tcp_pair() as pair:
        frame, content = random_frame(1000)
        ref = await pair.outgoing.send(frame)
        await eventually(lambda: pair.incoming.num_waiting == 1)
        with pytest.raises(PartError, match="has 1000 bytes, not 999"):
            pair.incoming.take(EdgeRef(ref.edge, ref.number, 999))
        assert await taken(pair.incoming, ref) == content
        with pytest.raises(PartError, match="was taken, or given up"):
            pair.incoming.take(ref)


async def test_a_wrong_ref_that_comes_first_is_told_when_its_payload_comes() -> None:
    async with tcp_pair() as pair:
        first = await pair.outgoing.send(random_frame(10)[0])
        early = pair.incoming.take(EdgeRef(first.edge, first.number + len(CHANNELS), 11))
        assert isinstance(early, asyncio.Future)
        with pytest.raises(PartError, match="is awaited already"):
            pair.incoming.take(EdgeRef(first.edge, first.number + len(CHANNELS), 11))
        await pair.outgoing.send(random_frame(10)[0])
        with pytest.raises(PartError, match="has 10 bytes, not 11"):
            await early


async def test_a_payload_without_a_message_is_given_up_and_frees_its_room() -> None:
    async with tcp_pair(payload_timeout_s=0.1) as pair:
        refs = [await asyncio.wait_for(pair.outgoing.send(large_frame(SMALL)), 5) for _ in range(300)]
        assert len(refs) * SMALL > 2 * CHANNELS[0].room_bytes
        with pytest.raises(PartError, match="given up"):
            pair.incoming.take(refs[0])


async def test_a_future_that_nobody_wants_any_more_costs_its_payload_only() -> None:
    async with tcp_pair() as pair:
        first = await pair.outgoing.send(random_frame(10)[0])
        future = pair.incoming.take(EdgeRef(first.edge, first.number + len(CHANNELS), 10))
        assert isinstance(future, asyncio.Future)
        future.cancel()
        await pair.outgoing.send(random_frame(10)[0])
        frame, content = random_frame(20)
        assert await taken(pair.incoming, await pair.outgoing.send(frame)) == content


async def test_what_was_sent_remains_good_after_the_sender_closed(is_encrypted: bool) -> None:
    async with tcp_pair(is_encrypted=is_encrypted) as pair:
        frames = [random_frame(size) for size in (100, MIB, 5 * MIB)]
        refs = [await pair.outgoing.send(frame) for frame, _ in frames]
        await pair.outgoing.close()
        assert "closed" in str(await asyncio.wait_for(pair.incoming.lost, 5))
        for ref, (_, content) in zip(refs, frames, strict=True):
            assert await taken(pair.incoming, ref) == content
        with pytest.raises(EdgeLostError):
            await pair.outgoing.send(frames[0][0])


async def test_what_no_edge_carries_takes_nats() -> None:
    async with tcp_pair() as pair:
        with pytest.raises(EdgeFullError, match="an edge carries"):
            await pair.outgoing.send(Frame(b"{}", (), 2**28 + 1))
        assert pair.outgoing.place(1000) is None
    assert [channel_for(size) for size in (1, SMALL, SMALL + 1, MEDIUM, MEDIUM + 1, 2**28, 2**28 + 1)] == [
        *(0, 0, 1, 1, 2, 2),
        None,
    ]
