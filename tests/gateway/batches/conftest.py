"""OpenAI's client in front of a gateway that carries batches on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import pytest_asyncio
from openai import AsyncOpenAI
from openai.types import Batch

from broker_pipeline.messages.jobs import JobSpec
from gateway.app import batch_runner
from gateway.wiring import Gateway
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import prompt_of
from tests.kit.waiting import eventually

Carrying = Callable[..., AbstractAsyncContextManager[tuple[Gateway, AsyncOpenAI]]]
ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest_asyncio.fixture
async def start_carrying(start_gateway: OpenGateway) -> Carrying:
    """Starts a gateway that carries batches on, and a client of it."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[tuple[Gateway, AsyncOpenAI]]:
        async with start_gateway(**changes) as (gateway, url), client_of(url) as client:
            running = asyncio.create_task(batch_runner(gateway).run())
            try:
                yield gateway, client
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running

    return start


@pytest_asyncio.fixture
async def client(running: tuple[Gateway, str]) -> AsyncIterator[AsyncOpenAI]:
    """A client of a gateway that carries no batches on."""
    async with client_of(running[1]) as opened:
        yield opened


@pytest_asyncio.fixture
async def carrying(running: tuple[Gateway, str]) -> AsyncIterator[Gateway]:
    """The running gateway carries batches on."""
    task = asyncio.create_task(batch_runner(running[0]).run())
    yield running[0]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def line(custom_id: str, text: str = "", **body: Any) -> str:
    """A line of an input whose question is `text`, or its own id."""
    messages = [{"role": "user", "content": text or custom_id}]
    request = {"model": "demo", "messages": messages, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": request})


async def upload(client: AsyncOpenAI, content: str | bytes | Sequence[str]) -> str:
    if not isinstance(content, str | bytes):
        content = "\n".join(content) + "\n"
    data = content.encode() if isinstance(content, str) else content
    return (await client.files.create(file=("input.jsonl", data), purpose="batch")).id


async def start_batch(client: AsyncOpenAI, content: str | bytes | Sequence[str], **more: Any) -> Batch:
    given = {"endpoint": "/v1/chat/completions", "completion_window": "24h"} | more
    return await client.batches.create(input_file_id=await upload(client, content), **given)  # type: ignore[arg-type]


async def ended(client: AsyncOpenAI, batch: Batch) -> Batch:
    found = batch

    async def has_ended() -> bool:
        nonlocal found
        found = await client.batches.retrieve(batch.id)
        return found.status in ENDED

    await eventually(has_ended, timeout_s=60)
    return found


async def rows(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    text = (await client.files.content(file_id)).text
    assert text.isascii()
    return [json.loads(one) for one in text.splitlines()]


async def answers(client: AsyncOpenAI, batch: Batch) -> dict[str, str]:
    """What the output file says, by custom id, each of which stands there once."""
    output = await rows(client, batch.output_file_id)
    assert len({row["custom_id"] for row in output}) == len(output)
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in output)
    return {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in output}


async def errors(client: AsyncOpenAI, batch: Batch) -> dict[str, dict[str, Any]]:
    """What the error file says, by custom id, each of which stands there once."""
    found = await rows(client, batch.error_file_id)
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


def echo(spec: JobSpec, _media: list[bytes]) -> str:
    return f"I heard {prompt_of(spec)}"
