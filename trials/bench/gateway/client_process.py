"""A process that posts pictures and waits for their captions, as cheaply as HTTP allows: it is not what is measured."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import msgspec
import uvloop

from broker_pipeline.client.bulk_calls import BulkCalls
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.messages.sampling import SamplingParams
from trials.bench.gateway.rows import Caption, ClientReport

_PAUSE_S = 0.05  # after a refusal
_END_OF_STREAM = b"\r\n0\r\n\r\n"
_decode = msgspec.json.Decoder(JobRecord).decode


class ClientOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What one client process does until it is told to stop."""

    url: str
    picture: bytes
    num_in_flight: int
    pause_s: float
    """Least seconds between the beginnings of two captions of one connection; 0 is without a break."""
    is_streamed: bool
    is_bulk: bool
    num_unread: int


def run_client(order: bytes, pipe: Connection) -> None:
    """Send until something comes through `pipe`, then put the report into it."""
    report = uvloop.run(_send(msgspec.json.decode(order, type=ClientOrder), pipe))
    os.set_blocking(pipe.fileno(), True)  # the loop that watched it made it otherwise
    pipe.send_bytes(msgspec.json.encode(report))


async def _send(order: ClientOrder, pipe: Connection) -> ClientReport:
    log = _Log()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stopped.set)
    keep = _keep_many if order.is_bulk else _keep_each
    tasks = [asyncio.create_task(keep(order, log))]
    tasks += [asyncio.create_task(_never_read(order, number, stopped)) for number in range(order.num_unread)]
    await asyncio.wait({asyncio.ensure_future(stopped.wait()), *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            log.refusals[f"{type(error).__name__}: {error}"] += 1
    return ClientReport(captions=tuple(log.captions), refusals=dict(log.refusals))


@dataclass(slots=True)
class _Log:
    captions: list[Caption] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)


async def _keep_each(order: ClientOrder, log: _Log) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(order.num_in_flight):
            group.create_task(_keep_one(order, number, log))


async def _keep_many(order: ClientOrder, log: _Log) -> None:
    """Caption as `broker-pipeline caption` does: many pictures in a request."""
    request = CaptionRequest("Describe this image in one sentence.", SamplingParams(max_tokens=64))

    async def keep_one(number: int, calls: BulkCalls) -> None:
        for index in itertools.count():
            began, name = time.monotonic(), f"{os.getpid()}.{number}.{index}"
            submitted = await calls.submit(order.picture + name.encode(), request, name)
            accepted = time.monotonic()
            record = await calls.wait(submitted.record.job_id)
            if record.status == "succeeded":
                log.captions.append(Caption(began, accepted, time.monotonic()))
            else:
                log.refusals[record.status] += 1
            await asyncio.sleep(max(0.0, began + order.pause_s - time.monotonic()))

    async with (
        GatewayClient.open(order.url) as client,
        BulkCalls.open(client) as calls,
        asyncio.TaskGroup() as group,
    ):
        for number in range(order.num_in_flight):
            group.create_task(keep_one(number, calls))


async def _keep_one(order: ClientOrder, number: int, log: _Log) -> None:
    """Caption one picture after the other, over one connection as long as it lasts."""
    await asyncio.sleep(order.pause_s * number / order.num_in_flight)  # not all at once
    indexes = itertools.count()
    while True:
        http = None
        try:
            http = await _Http.open(order.url)
            for index in indexes:
                began = time.monotonic()
                picture = order.picture + f"{os.getpid()}.{number}.{index}".encode()
                await (_streamed_caption if order.is_streamed else _caption)(http, picture, began, log)
                await asyncio.sleep(max(0.0, began + order.pause_s - time.monotonic()))
        except (EOFError, OSError, ValueError) as error:  # it closes what it refuses early, and may be gone
            log.refusals[f"{type(error).__name__}: {error}"[:80]] += 1
            await asyncio.sleep(_PAUSE_S)
        finally:
            if http is not None:
                http.close()


async def _caption(http: _Http, picture: bytes, began: float, log: _Log) -> None:
    """Submit a picture and wait for the end of its job; every picture's bytes differ, as its end does."""
    boundary = secrets.token_hex(16)  # another one each time, as clients have it
    status, body = await http.ask("POST", "/v1/jobs", boundary, _form(picture, boundary))
    accepted = time.monotonic()
    if status != 202:
        log.refusals[str(status)] += 1
        await asyncio.sleep(_PAUSE_S)
        return
    record = _decode(body)
    while record.status in {"queued", "running"}:
        status, body = await http.ask("GET", f"/v1/jobs/{record.job_id}?wait_s=20")
        if status != 200:
            log.refusals[str(status)] += 1
            return
        record = _decode(body)
    if record.status == "succeeded":
        log.captions.append(Caption(began, accepted, time.monotonic()))
    else:
        log.refusals[record.status] += 1


async def _streamed_caption(http: _Http, picture: bytes, began: float, log: _Log) -> None:
    """Stream a chat completion about a picture to its end."""
    http.send("POST", "/v1/chat/completions", "application/json", _chat(picture))
    status, length = await http.head()
    if status != 200:
        await http.reader.readexactly(length)
        log.refusals[str(status)] += 1
        await asyncio.sleep(_PAUSE_S)
        return
    await http.reader.readuntil(b"data: ")
    first = time.monotonic()
    await http.reader.readuntil(_END_OF_STREAM)
    log.captions.append(Caption(began, first, time.monotonic()))


async def _never_read(order: ClientOrder, number: int, stopped: asyncio.Event) -> None:
    """Ask for a stream and take nothing of it."""
    http = await _Http.open(order.url)
    http.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a `ReadTransport` as well
    http.send("POST", "/v1/chat/completions", "application/json", _chat(order.picture + f"{number}.unread".encode()))
    await stopped.wait()


def _chat(picture: bytes) -> bytes:
    url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe this image."}]
    messages = [{"role": "user", "content": content}]
    return msgspec.json.encode({"model": "any", "messages": messages, "max_tokens": 64, "stream": True})


def _form(picture: bytes, boundary: str) -> bytes:
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="request"\r\nContent-Type: application/json\r\n\r\n'
        '{"prompt": "Describe this image in one sentence.", "sampling": {"max_tokens": 64}}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="picture"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + b"%b\r\n--%b--\r\n" % (picture, boundary.encode())


@dataclass(frozen=True, slots=True)
class _Http:
    """One connection of HTTP/1.1 whose answers say how long they are, as the gateway's do."""

    host: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> _Http:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        return cls(parts.netloc, reader, writer)

    async def ask(self, method: str, path: str, boundary: str = "", form: bytes = b"") -> tuple[int, bytes]:
        """Return status and body."""
        self.send(method, path, f"multipart/form-data; boundary={boundary}", form)
        status, length = await self.head()
        return status, await self.reader.readexactly(length)

    def send(self, method: str, path: str, content_type: str, body: bytes) -> None:
        """Send a request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\n"
        if body:
            head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"\r\n" + body)

    async def head(self) -> tuple[int, int]:
        """Return an answer's status, and how long it says that it is; 0 where it is in chunks."""
        answer = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = answer.partition(b"content-length:")[2].partition(b"\r\n")[0]
        return int(answer.split(b" ", 2)[1]), int(length or 0)

    def close(self) -> None:
        self.writer.close()
