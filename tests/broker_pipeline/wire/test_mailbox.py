"""No item is lost and no reader forgotten, whoever is cancelled when."""

from __future__ import annotations

import asyncio
import random

import pytest

from broker_pipeline.wire.mailbox import Mailbox


async def test_items_come_in_order() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for number in range(3):
        mailbox.put(number)
    assert [await mailbox.get() for _ in range(3)] == [0, 1, 2]


async def test_each_reader_gets_one() -> None:
    mailbox: Mailbox[int] = Mailbox()
    readers = [asyncio.create_task(mailbox.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(3):
        mailbox.put(number)
    assert await asyncio.gather(*readers) == [0, 1, 2]


async def test_a_reader_that_is_cancelled_while_it_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    first, second = (asyncio.create_task(mailbox.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    mailbox.put(1)  # before the first has heard of it
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_reader_that_is_cancelled_when_it_has_been_woken() -> None:
    mailbox: Mailbox[int] = Mailbox()
    first, second = (asyncio.create_task(mailbox.get()) for _ in range(2))
    await asyncio.sleep(0)
    mailbox.put(1)
    first.cancel()
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_readers_cancelled_at_random_lose_nothing() -> None:
    chance = random.Random(0)
    mailbox: Mailbox[int] = Mailbox()
    got: list[int] = []

    async def read() -> None:
        got.append(await mailbox.get())

    num_items = 0
    for _ in range(3000):
        readers = [asyncio.create_task(read()) for _ in range(chance.randrange(4))]
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        for _ in range(chance.randrange(3)):
            mailbox.put(num_items)
            num_items += 1
            if readers and chance.random() < 0.5:
                chance.choice(readers).cancel()
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    while len(got) < num_items:
        async with asyncio.timeout(1):
            await read()
    assert sorted(got) == list(range(num_items))
