"""Requests to an OpenAI-compatible server, each streamed, sent when it is due.

arrivals ──due──► one task a request ──POST, stream──► when each piece came ──► rows.row_of
                   └─ at most `num_in_flight` at the same time; who waits for a place counts as waiting
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from broker_pipeline.errors import GatewayUnreachableError
from trials.bench.serve.arrivals import arrivals
from trials.bench.serve.rows import RequestTimes, ServeSettings

_DATA, _DONE = b"data: ", b"[DONE]"


@asynccontextmanager
async def open_session(key: str | None) -> AsyncIterator[aiohttp.ClientSession]:
    """Have connections without a bound, with the key of the API where there is one."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**20
    ) as session:
        yield session


async def served_model(session: aiohttp.ClientSession, url: str) -> str:
    """Return the first model that the server lists. Raises `GatewayUnreachableError`."""
    try:
        async with session.get(f"{url}/models") as answer:
            answer.raise_for_status()
            return str((await answer.json())["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, LookupError, ValueError) as error:
        raise GatewayUnreachableError(
            f"{url}/models does not list a model: {error!r}; give --url and --model"
        ) from error


async def send_all(
    session: aiohttp.ClientSession, settings: ServeSettings, pictures: list[bytes], tell: Callable[[int], None]
) -> list[RequestTimes]:
    """Send every request and return what came of each; `tell` gets the number that have ended."""
    room = asyncio.Semaphore(settings.num_in_flight or settings.num_prompts)
    done: list[RequestTimes] = []

    async def one(number: int, due: float) -> None:
        async with room:
            body = body_of(settings, number, pictures[number % len(pictures)] if pictures else None)
            done.append(await ask(session, settings.url, body, due))
        tell(len(done))

    async with AsyncExitStack() as unread, asyncio.TaskGroup() as group:
        for number in range(settings.num_unread):
            body = body_of(settings, -1 - number, pictures[0] if pictures else None)
            answer = await unread.enter_async_context(session.post(f"{settings.url}/chat/completions", json=body))
            if answer.connection is not None and (transport := answer.connection.transport) is not None:
                transport.pause_reading()
        began = time.monotonic()
        for number, due_s in zip(range(settings.num_prompts), arrivals(settings.rate, settings.seed), strict=False):
            await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
            group.create_task(one(number, began + due_s))
    return done


def body_of(settings: ServeSettings, number: int, picture: bytes | None) -> dict[str, Any]:
    """Return one request; its seed and its picture's last bytes are its own, so that no answer is shared."""
    content: list[dict[str, Any]] = [{"type": "text", "text": settings.prompt}]
    if picture is not None:
        encoded = base64.b64encode(picture + str((settings.seed, number)).encode()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}})
    return {
        "model": settings.model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": settings.num_output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "seed": settings.seed + number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], due: float) -> RequestTimes:
    """Send one request and read its stream to the end."""
    stream = _Stream()
    try:
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            if answer.status != 200:
                stream.problem = f"HTTP {answer.status}"
            async for line in answer.content:
                if line.startswith(_DATA):
                    stream.read(line[len(_DATA) :])
    except (aiohttp.ClientError, OSError, ValueError) as error:
        stream.problem = type(error).__name__
    return RequestTimes(
        due=due,
        chunks=tuple(stream.times),
        ended=time.monotonic(),
        num_prompt_tokens=stream.usage.get("prompt_tokens", 0),
        num_output_tokens=stream.usage.get("completion_tokens", 0),
        problem=stream.problem or (None if stream.is_done and stream.times else "the stream broke off"),
    )


@dataclass(slots=True)
class _Stream:
    """What has come of one answer."""

    times: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    is_done: bool = False

    def read(self, data: bytes) -> None:
        """Take one event. Raises `ValueError` for what is no JSON."""
        if data.startswith(_DONE):
            self.is_done = True
            return
        event = orjson.loads(data)
        self.usage = event.get("usage") or self.usage
        if "error" in event:
            self.problem = str(event["error"].get("type"))
        deltas = [choice.get("delta") or {} for choice in event.get("choices", ())]
        if any(delta.get("content") or delta.get("reasoning") for delta in deltas):
            self.times.append(time.monotonic())
