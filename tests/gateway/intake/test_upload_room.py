"""Memory for bodies is bounded by bytes, and given out in order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from broker_pipeline.errors import QueueFullError
from gateway.intake.upload_room import UploadRoom

MIB = 2**20


async def take(room: UploadRoom, num_bytes: int, stack: AsyncExitStack) -> None:
    await stack.enter_async_context(room.hold(num_bytes))


async def test_as_many_bodies_as_fit_are_held_and_no_more() -> None:
    room = UploadRoom(MIB, wait_s=0.01)
    async with AsyncExitStack() as held:
        for _ in range(4):
            await take(room, MIB // 4, held)
        with pytest.raises(QueueFullError):
            await take(room, 1, held)
    async with room.hold(MIB):
        pass


async def test_the_smallest_body_takes_some_room_and_the_largest_all_of_it() -> None:
    room = UploadRoom(MIB, wait_s=0.01)
    async with AsyncExitStack() as held:
        for _ in range(16):
            await take(room, 0, held)
        with pytest.raises(QueueFullError):
            await take(room, 0, held)
    async with room.hold(10 * MIB):
        with pytest.raises(QueueFullError):
            await take(room, 0, AsyncExitStack())


async def test_a_large_body_is_not_passed_by_small_ones_for_ever() -> None:
    room, order = UploadRoom(MIB, wait_s=5.0), []

    async def hold(name: str, num_bytes: int) -> None:
        async with room.hold(num_bytes):
            order.append(name)

    async with AsyncExitStack() as held:
        await take(room, MIB // 2, held)
        async with asyncio.TaskGroup() as group:
            for name, num_bytes in (("large", MIB), ("small", 1), ("small", 1)):
                group.create_task(hold(name, num_bytes))
                await asyncio.sleep(0)
            assert order == []
            await held.aclose()
    assert order == ["large", "small", "small"]


async def test_who_gives_up_waiting_makes_way_and_loses_no_room() -> None:
    room = UploadRoom(MIB, wait_s=5.0)
    async with AsyncExitStack() as held:
        await take(room, MIB // 2, held)
        large = asyncio.ensure_future(take(room, MIB, AsyncExitStack()))
        await asyncio.sleep(0)
        small = asyncio.ensure_future(take(room, 1, held))
        await asyncio.sleep(0)
        assert not small.done()
        large.cancel()
        await small
    async with room.hold(MIB):
        pass


async def test_a_turn_that_comes_together_with_a_cancellation_is_given_on() -> None:
    room = UploadRoom(MIB, wait_s=5.0)
    async with AsyncExitStack() as held:
        await take(room, MIB, held)
        waiting = asyncio.ensure_future(take(room, MIB, AsyncExitStack()))
        await asyncio.sleep(0)
        await held.aclose()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(1.0), room.hold(MIB):
        pass


async def test_one_client_has_its_part_and_others_pass_it_while_it_waits() -> None:
    room, order = UploadRoom(MIB, wait_s=5.0, max_client_bytes=MIB // 2), []

    async def hold(client: str, num_bytes: int) -> None:
        async with room.hold(num_bytes, client):
            order.append(client)

    async with AsyncExitStack() as held:
        await held.enter_async_context(room.hold(MIB, "greedy"))  # takes its part
        async with asyncio.TaskGroup() as group:
            group.create_task(hold("greedy", 1))
            await asyncio.sleep(0)
            await hold("other", MIB // 2)
            assert order == ["other"]
            await held.aclose()
    assert order == ["other", "greedy"]


async def test_a_client_that_holds_its_part_is_sent_away_in_the_end() -> None:
    room = UploadRoom(MIB, wait_s=0.01, max_client_bytes=MIB // 2)
    async with room.hold(MIB, "greedy"):
        with pytest.raises(QueueFullError):
            async with room.hold(1, "greedy"):
                pass
        async with room.hold(MIB, "other"):
            pass
