"""Files are kept whole or not at all, and given back byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import random

import aiohttp
import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, ConflictError, NotFoundError
from yarl import URL

from broker_pipeline import redis_keys, subjects
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from gateway.settings import MIB, BatchLimits
from gateway.wiring import Gateway
from tests.gateway.batches.conftest import Carrying, line, start_batch, upload
from tests.gateway.conftest import OpenGateway
from tests.kit.waiting import eventually


async def num_chunks(transport: Transport, namespace: str) -> int:
    return (await transport.jetstream().stream_info(subjects.file_stream(namespace))).state.messages


async def test_bytes_come_back_as_they_were(client: AsyncOpenAI) -> None:
    content = random.Random(0).randbytes(3 * MIB + 17)
    file = await client.files.create(file=("a b é.jsonl", content), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "a b é.jsonl", "batch")
    assert (file.status, await client.files.wait_for_processing(file.id)) == ("processed", file)
    assert (await client.files.content(file.id)).content == content
    assert await client.files.retrieve(file.id) == file
    unnamed = await client.files.create(file=b"{}", purpose="batch")
    assert unnamed.filename == "upload"


async def test_a_file_lives_as_long_as_it_is_said(
    client: AsyncOpenAI, running: tuple[Gateway, str], redis: RedisClient, transport: Transport, namespace: str
) -> None:
    hour = await client.files.create(
        file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    month = await client.files.create(file=b"{}", purpose="batch")
    lives = [(file.expires_at or 0) - file.created_at for file in (hour, month)]
    assert lives == [3600, 30 * 24 * 3600]
    read = await start_batch(client, [line("a")])
    for file_id in (hour.id, read.input_file_id):
        await redis.zadd(redis_keys.files_expiry(namespace), {file_id: 1.0})
    assert await running[0].files.sweep() == 1
    with pytest.raises(NotFoundError):
        await client.files.retrieve(hour.id)
    assert (await client.files.content(read.input_file_id)).text == line("a") + "\n", "a batch reads it"
    assert await num_chunks(transport, namespace) == 2


async def test_deleting(
    client: AsyncOpenAI, running: tuple[Gateway, str], transport: Transport, namespace: str
) -> None:
    batch = await start_batch(client, [line("a")])
    file_id = await upload(client, "{}")
    deleted = await client.files.delete(file_id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file_id, "file", True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(NotFoundError):
            await ask(file_id)
    with pytest.raises(ConflictError):
        await client.files.delete(batch.input_file_id)
    await running[0].files.sweep()
    assert await num_chunks(transport, namespace) == 1


async def test_pages(client: AsyncOpenAI) -> None:
    made = [await upload(client, "{}") for _ in range(5)]
    assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
    assert [file.id async for file in client.files.list(purpose="batch", limit=3)] == made[::-1]
    assert [file.id async for file in client.files.list(purpose="batch_output")] == []
    page = await client.files.list(limit=2, after=made[1], order="asc")
    assert ([file.id for file in page.data], page.has_more) == (made[2:4], True)
    for wrong in ({"after": "file-unknown"}, {"limit": 0}, {"extra_query": {"what": "1"}}):
        with pytest.raises(BadRequestError):
            await client.files.list(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"file": b""}, "file"),
        ({"expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after[seconds]"),
        ({"expires_after": {"anchor": "last_active_at", "seconds": 3600}}, "expires_after[anchor]"),
        ({"extra_body": {"colour": "red"}}, "colour"),
    ],
)
async def test_uploads_that_are_refused(client: AsyncOpenAI, given: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.files.create(**({"file": b"{}", "purpose": "batch"} | given))  # type: ignore[arg-type]
    assert refused.value.param == param
    assert [file async for file in client.files.list()] == []


async def test_a_form_without_a_file_or_no_form_at_all(running: tuple[Gateway, str]) -> None:
    async with aiohttp.ClientSession(base_url=running[1]) as http:
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("expires_after[anchor]", "created_at", content_type="text/plain")
        bodies = [{"json": {"purpose": "batch"}}, {"data": form}, {"data": b""}]
        for body in bodies:
            async with http.post("/v1/files", **body) as answer:  # type: ignore[arg-type]
                assert answer.status == 400, await answer.text()


async def test_a_file_that_is_too_large_is_not_kept(
    start_gateway: OpenGateway, start_carrying: Carrying, transport: Transport, namespace: str
) -> None:
    limits = BatchLimits(max_file_bytes=2 * MIB)
    async with start_carrying(batches=limits) as (_, client):
        for content in (bytes(2 * MIB + 1), bytes(3 * MIB)):
            with pytest.raises(APIStatusError) as refused:
                await client.files.create(file=content, purpose="batch")
            assert refused.value.status_code == 413
        assert (await client.files.create(file=bytes(2 * MIB), purpose="batch")).bytes == 2 * MIB
        assert await num_chunks(transport, namespace) == 2


async def test_a_full_store_is_said(start_carrying: Carrying) -> None:
    async with start_carrying(files_max_bytes=2 * MIB) as (_, client):
        with pytest.raises(APIStatusError) as refused:
            await client.files.create(file=bytes(3 * MIB), purpose="batch")
        assert (refused.value.status_code, "retry-after" in refused.value.response.headers) == (429, True)
        assert (await client.files.create(file=bytes(MIB), purpose="batch")).bytes == MIB, "the rest was deleted"


async def test_of_an_upload_that_is_cut_off_nothing_is_kept(
    running: tuple[Gateway, str], client: AsyncOpenAI, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    await upload(client, "{}")
    url = URL(running[1])
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = (
        b"--x\r\nContent-Disposition: form-data; name=purpose\r\n\r\nbatch\r\n"
        b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
    )
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 50000000\r\n\r\n" + head + bytes(4 * MIB)
    )

    async def is_under_way() -> bool:
        return await num_chunks(transport, namespace) > 2

    async def is_gone() -> bool:
        return await num_chunks(transport, namespace) == 1

    await eventually(is_under_way)
    writer.close()
    await eventually(is_gone)
    assert len([file async for file in client.files.list()]) == 1
    assert await redis.zcard(redis_keys.files_doomed(namespace)) == 0
    _ = reader


async def test_many_readers_see_the_same(client: AsyncOpenAI) -> None:
    content = random.Random(1).randbytes(2 * MIB)
    file_id = await upload(client, content)
    read = await asyncio.gather(*(client.files.content(file_id) for _ in range(8)))
    assert {hashlib.sha256(one.content).digest() for one in read} == {hashlib.sha256(content).digest()}
