"""Clients that send or read slowly, or not at all, are cut off, and one address never has all places."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO

import aiohttp
import pytest
from yarl import URL

from broker_pipeline.messages.jobs import TokenEntry
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from gateway.settings import MIB, Limits
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import acting_conductor
from tests.kit.running.gateway_process import until_metrics
from tests.kit.waiting import eventually

_QUICK = Limits(max_uploads=1, upload_timeout_s=0.5)
_FORM = (
    b"--x\r\nContent-Disposition: form-data; name=purpose\r\n\r\nbatch\r\n"
    b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
)


_END = b"\r\n--x--\r\n"


@asynccontextmanager
async def connected(
    url: str, request: bytes, receive_bytes: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the head of a request over a connection of its own, whose side here has room for so many bytes."""
    address = URL(url)
    plain = socket.socket()
    if receive_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, (address.host, address.port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
    writer.write(request)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def upload_head(num_bytes: int) -> bytes:
    return (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: %d\r\n\r\n" % (len(_FORM) + num_bytes)
    ) + _FORM


async def status_of(reader: asyncio.StreamReader) -> int:
    return int((await reader.readline()).split()[1])


async def post_file(http: aiohttp.ClientSession, content: bytes = b"{}") -> str:
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", BytesIO(content), filename="a.jsonl")
    async with http.post("/v1/files", data=form) as answer:
        assert answer.status == 200
        file_id: str = (await answer.json())["id"]
        return file_id


@pytest.mark.parametrize("num_quick", [0, MIB], ids=["from the start", "after a quick start"])
async def test_a_file_that_drips_is_cut_off(start_gateway: OpenGateway, num_quick: int) -> None:
    async with start_gateway(limits=_QUICK) as (_, url), connected(url, upload_head(10 * MIB)) as (reader, writer):
        writer.write(bytes(num_quick))

        async def drip() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(5):
            assert await status_of(reader) == 408
        dripping.cancel()
        async with aiohttp.ClientSession(url) as http:
            await post_file(http)


async def test_a_file_may_take_as_long_as_it_flows(start_gateway: OpenGateway) -> None:
    async with (
        start_gateway(limits=_QUICK) as (_, url),
        connected(url, upload_head(30_000 + len(_END))) as (reader, writer),
    ):
        began = asyncio.get_running_loop().time()
        for _ in range(30):  # 20 kB/s: longer than a body of a job may take
            writer.write(bytes(1000))
            await asyncio.sleep(0.05)
        writer.write(_END)
        assert await status_of(reader) == 200
        assert asyncio.get_running_loop().time() - began > _QUICK.upload_timeout_s


async def test_slow_files_of_one_address_leave_room_for_others(start_gateway: OpenGateway) -> None:
    elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with (
        start_gateway(limits=Limits(max_uploads=4)) as (_, url),
        asyncio.TaskGroup() as group,
        aiohttp.ClientSession(url, connector=elsewhere) as other,
    ):
        held = asyncio.Event()

        async def hold() -> None:
            async with connected(url, upload_head(10 * MIB)):
                await held.wait()

        for _ in range(8):
            group.create_task(hold())
        await until_metrics(url, uploads_in_flight=2)
        async with asyncio.timeout(5):
            await post_file(other)
        held.set()


async def test_streams_of_one_address_leave_places_for_others(start_gateway: OpenGateway) -> None:
    elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with (
        start_gateway(limits=Limits(max_streams=4)) as (gateway, url),
        aiohttp.ClientSession(url) as http,
        aiohttp.ClientSession(url, connector=elsewhere) as other,
    ):
        async with http.post("/v1/jobs", json={"prompt": "x"}) as answer:
            path = answer.headers["Location"] + "/events"
        async with http.get(path), http.get(path):
            assert gateway.watch.num_open == 2
            async with http.get(path) as refused, other.get(path) as let_in:
                assert (refused.status, refused.headers["Retry-After"], let_in.status) == (429, "5", 200)
        await eventually(lambda: gateway.watch.num_open == 0)


async def test_a_download_that_nobody_reads_is_cut_off(start_gateway: OpenGateway) -> None:
    async with start_gateway(limits=_QUICK) as (_, url), aiohttp.ClientSession(url) as http:
        file_id = await post_file(http, bytes(16 * MIB))
        request = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        async with connected(url, request, receive_bytes=4096) as (reader, _):
            assert await status_of(reader) == 200
            async with asyncio.timeout(5):
                await post_file(http)  # the only place is free again
            assert len(await _read(reader)) < 16 * MIB


async def test_a_stream_that_nobody_reads_is_cut_off_and_its_job_stops(
    start_gateway: OpenGateway, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": true}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with (
        start_gateway(limits=_QUICK) as (gateway, url),
        acting_conductor(transport, redis, namespace) as conductor,
        connected(url, request, receive_bytes=4096) as (reader, _),
    ):
        spec = (await conductor.take()).spec
        attempt = await conductor.begin(spec)
        for index in range(32):
            await conductor.commit_entries(spec.job_id, attempt, index, _long_tokens(index))
        await eventually(lambda: gateway.watch.num_open == 0)

        async def is_stopped() -> bool:
            return await conductor.store.cancelled([spec.job_id]) == [spec.job_id]

        await eventually(is_stopped)
        assert not (await _read(reader)).endswith(b"[DONE]\n\n")
        await eventually(lambda: gateway.in_flight.num_requests == 0)


def _long_tokens(index: int) -> Sequence[TokenEntry]:
    return [TokenEntry(token_id=index, text="x" * (MIB // 2))]


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the connection is closed or reset."""
    content = bytearray()
    try:
        while chunk := await reader.read(65536):
            content += chunk
    except ConnectionResetError:
        pass
    return bytes(content)
