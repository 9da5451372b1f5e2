from __future__ import annotations

import asyncio

import pytest

from broker_pipeline.wire.mailbox import Mailbox


async def test_items_come_out_as_they_went_in() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    reading = asyncio.create_task(mailbox.get())
    mailbox.put(2)
    assert (await reading, await mailbox.get()) == (1, 2)


async def test_an_item_that_comes_with_the_readers_end_is_the_next_readers() -> None:
    mailbox: Mailbox[int] = Mailbox()
    first, second = (asyncio.create_task(mailbox.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    mailbox.put(1)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, 1) == 1


async def test_a_reader_that_ends_after_it_was_woken_wakes_another() -> None:
    mailbox: Mailbox[int] = Mailbox()
    first, second = (asyncio.create_task(mailbox.get()) for _ in range(2))
    await asyncio.sleep(0)
    mailbox.put(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, 1) == 1
