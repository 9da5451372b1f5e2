"""How slowly a body may arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from broker_pipeline.errors import BodyTooSlowError
from gateway.intake.body import CappedStream
from gateway.settings import Limits, Pace
from tests.gateway.conftest import OpenGateway
from tests.kit.running.gateway_process import until_metrics


def test_a_body_earns_its_time_by_what_it_brings() -> None:
    pace = Pace(timeout_s=100, min_bytes_per_s=10, grace_s=5)
    assert [pace.allowed_s(num_read) for num_read in (0, 10, 500, 10_000)] == [5, 6, 55, 100]


async def read_all(pace: Pace, chunks: int, pause_s: float) -> int:
    reader = asyncio.StreamReader()

    async def send() -> None:
        for _ in range(chunks):
            reader.feed_data(b"x" * 100)
            await asyncio.sleep(pause_s)
        reader.feed_eof()

    sending = asyncio.create_task(send())
    stream, num_read = CappedStream(reader, 10_000, pace), 0  # type: ignore[arg-type]
    try:
        while content := await stream.read(4096):
            num_read += len(content)
    finally:
        sending.cancel()
    return num_read


async def test_one_that_drips_is_cut_off_and_one_that_flows_is_not() -> None:
    quick = Pace(timeout_s=60, min_bytes_per_s=100, grace_s=30)
    assert await read_all(quick, chunks=5, pause_s=0.001) == 500
    with pytest.raises(BodyTooSlowError, match="bytes/s"):
        await read_all(Pace(timeout_s=60, min_bytes_per_s=10_000, grace_s=0.05), chunks=100, pause_s=0.04)


async def test_slow_uploads_of_one_address_leave_room_for_others(start_gateway: OpenGateway, jpeg: bytes) -> None:
    async def drip() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def upload(http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/jobs", data=drip(), headers={"Content-Type": "application/json"}):
            pass

    elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with (
        start_gateway(limits=Limits(max_uploads=4)) as (_, url),
        aiohttp.ClientSession(base_url=url) as slow,
        aiohttp.ClientSession(base_url=url, connector=elsewhere) as other,
    ):
        drips = [asyncio.create_task(upload(slow)) for _ in range(8)]
        await until_metrics(url, uploads_in_flight=2)
        form = aiohttp.FormData()
        form.add_field("image", jpeg, filename="a.jpg")
        async with asyncio.timeout(8), other.post("/v1/jobs", data=form) as answer:
            assert answer.status == 202
        for each in drips:
            each.cancel()
        await asyncio.wait(drips)
