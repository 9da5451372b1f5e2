"""What the transport makes of servers that die, hang, shrink, or throw it out."""

from __future__ import annotations

import array
import asyncio
import fcntl
import json
import os
import signal
import socket
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_pipeline.errors import (
    ContractError,
    PartError,
    RequestTimeoutError,
    TransportError,
)
from broker_pipeline.messages.base import TensorSpec
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.servers import EmbeddedNats, find_nats_server
from broker_pipeline.wire.transport import Received, Transport
from broker_pipeline.wire.wire_tensor import WireTensor
from tests.kit.waiting import eventually

MIB = 2**20


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A body of any size, with tensors."""

    number: int = 0
    text: str = ""
    tensors: tuple[TensorSpec, ...] = ()


def floats(num_bytes: int) -> dict[str, WireTensor]:
    pattern = os.urandom(min(num_bytes, 4096))
    whole = pattern * (num_bytes // max(len(pattern), 1)) + pattern[: num_bytes % max(len(pattern), 1)]
    return {"hidden": WireTensor.from_numpy(np.frombuffer(whole, np.float32))}


async def next_of(messages: object, timeout_s: float = 10.0) -> Received[Note]:
    async with asyncio.timeout(timeout_s):
        received: Received[Note] = await anext(messages)  # type: ignore[call-overload]
        return received


def unread_bytes(transport: Transport) -> int:
    """What the kernel holds of large messages that nobody has read."""
    link = transport.link.bulk.socket._link
    assert link is not None
    count = array.array("i", [0])
    fcntl.ioctl(link.transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return count[0]


@asynccontextmanager
async def pair(server: EmbeddedNats) -> AsyncIterator[tuple[Transport, Transport]]:
    async with (
        Transport.open(server.url, name="sender") as sender,
        Transport.open(server.url, name="receiver") as receiver,
    ):
        yield sender, receiver


async def test_a_killed_server_that_returns(own_nats: EmbeddedNats) -> None:
    told: list[int] = []
    async with pair(own_nats) as (sender, receiver), receiver.subscribe("a", Note) as messages:
        sender.add_reconnect_listener(lambda: told.append(1))
        await sender.publish("a", Note(number=1))
        assert (await next_of(messages)).body.number == 1
        pending = asyncio.create_task(sender.request("a", Note(number=2), reply_type=Note, timeout_s=2))
        assert (await next_of(messages)).body.number == 2
        own_nats.kill()
        await eventually(lambda: not sender.is_connected and not receiver.is_connected)
        with pytest.raises(TransportError, match="reconnecting"):
            await sender.publish("a", Note(number=3))
        with pytest.raises(TransportError, match="reconnecting"):
            await sender.publish("a", Note(number=3), floats(MIB))
        await own_nats.restart()
        await eventually(lambda: sender.is_connected and receiver.is_connected)
        await asyncio.gather(sender.link.barrier(), receiver.link.barrier())
        await sender.publish("a", Note(number=4))
        await sender.publish("a", Note(number=5), floats(3 * MIB))
        assert {(await next_of(messages)).body.number for _ in range(2)} == {4, 5}
        with pytest.raises(RequestTimeoutError):
            await pending
        assert len(told) == 2
        assert sender.counts.num_reconnects == 2


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.1])
async def test_killed_while_a_large_message_is_under_way(own_nats: EmbeddedNats, delay_s: float) -> None:
    """It arrives whole or it is missed; what arrived of it is given up at once, and the next ones get through."""
    malformed: list[ContractError] = []
    async with (
        pair(own_nats) as (sender, receiver),
        receiver.subscribe("a", Note, on_malformed=lambda error, _reply: malformed.append(error)) as messages,
    ):
        request = asyncio.create_task(
            sender.request("a", Note(number=1), floats(100 * MIB), reply_type=Note, timeout_s=3)
        )
        await asyncio.sleep(delay_s)
        own_nats.kill()
        await eventually(lambda: not sender.is_connected and not receiver.is_connected)
        await eventually(lambda: messages.room.used_bytes == 0, timeout_s=3)
        await own_nats.restart()
        await asyncio.gather(sender.link.barrier(), receiver.link.barrier())
        with pytest.raises((TransportError, PartError)):
            await request
        await sender.publish("a", Note(number=2), floats(5 * MIB))
        while (received := await next_of(messages)).body.number != 2:
            assert received.body.number == 1
        assert all(isinstance(error, PartError) for error in malformed)


async def test_killed_while_a_large_answer_is_under_way(own_nats: EmbeddedNats) -> None:
    async with pair(own_nats) as (asker, server), server.subscribe("a", Note) as messages:
        request = asyncio.create_task(asker.request("a", Note(), reply_type=Note, timeout_s=20))
        received = await next_of(messages)
        answer = asyncio.create_task(received.respond(Note(), floats(200 * MIB)))
        await eventually(lambda: any(len(each.assembler) for each in asker.link.bulk.receivers.values()))
        own_nats.kill()
        started = time.monotonic()
        with pytest.raises(PartError, match="connection was lost"):
            await request
        assert time.monotonic() - started < 5, "known at once, not at the request's deadline"
        with pytest.raises(TransportError):
            await answer


async def test_subscribing_while_the_server_is_away(own_nats: EmbeddedNats) -> None:
    async with pair(own_nats) as (sender, receiver):
        own_nats.kill()
        await eventually(lambda: not sender.is_connected and not receiver.is_connected)
        subscription = receiver.subscribe("a", Note)
        entering = asyncio.create_task(subscription.__aenter__())
        await asyncio.sleep(0.1)
        assert not entering.done()
        await own_nats.restart()
        messages = await entering
        await sender.link.barrier()
        await sender.publish("a", Note(number=1))
        assert (await next_of(messages)).body.number == 1
        await subscription.__aexit__(None, None, None)


async def test_a_server_that_hangs(own_nats: EmbeddedNats) -> None:
    async with Transport.open(own_nats.url, name="test") as transport:
        own_nats.kill(signal.SIGSTOP)
        await asyncio.sleep(0.1)
        try:
            with pytest.raises(TransportError, match=r"within 0\.3 s"):
                await transport.link.small.barrier(timeout_s=0.3)
            with pytest.raises(RequestTimeoutError):
                await transport.request("a", Note(), floats(32 * MIB), reply_type=Note, timeout_s=0.5)
            assert transport.link.bulk.socket.unsent_bytes < 8 * MIB
        finally:
            own_nats.kill(signal.SIGCONT)
        await transport.link.small.barrier()


@pytest.mark.parametrize("max_payload", [2048, 65_536, MIB])
async def test_a_server_that_returns_with_another_limit(
    own_nats: EmbeddedNats, monkeypatch: pytest.MonkeyPatch, max_payload: int
) -> None:
    async with pair(own_nats) as (sender, receiver), receiver.subscribe("a", Note) as messages:
        assert sender.link.small.max_payload == 8 * MIB
        monkeypatch.setattr("broker_pipeline.tools.local.servers.MAX_PAYLOAD_BYTES", max_payload)
        own_nats.kill()
        await eventually(lambda: not sender.is_connected and not receiver.is_connected)
        await own_nats.restart()
        await asyncio.gather(sender.link.barrier(), receiver.link.barrier())
        assert sender.link.small.max_payload == max_payload
        for num_bytes in (0, max_payload - 600 - max_payload % 4, max_payload, 20 * max_payload):
            sent = floats(num_bytes)
            await sender.publish("a", Note(number=num_bytes, text="m" * (max_payload // 3)), sent)
            received = await next_of(messages)
            assert received.tensors["hidden"].data == sent["hidden"].data
        assert sender.counts.num_reconnects == 2, "nobody was thrown out for what was sent"


async def test_thrown_out_for_good(own_nats: EmbeddedNats) -> None:
    """A message beyond max_payload, sent past our own check, as nats-py lets one: the server ends the connection."""
    async with Transport.open(own_nats.url, name="test") as transport, transport.subscribe("a", Note) as messages:
        request = asyncio.create_task(transport.request("a", Note(), reply_type=Note, timeout_s=20))
        await next_of(messages)
        reader = asyncio.create_task(anext(messages))
        waiter = asyncio.create_task(transport.wait_failed())
        small = transport.link.small.client
        await small.publish("a", bytes(8 * MIB - 10), headers={"X": "y" * 1000})
        for victim in (waiter, reader, request):
            with pytest.raises(TransportError, match="for good"):
                await asyncio.wait_for(victim, 5)
        with pytest.raises(TransportError):
            await transport.publish("a", Note())
        with pytest.raises(TransportError):
            await transport.link.small.barrier(timeout_s=1)
        with pytest.raises(TransportError):
            async with transport.subscribe("b", Note):
                pass


@asynccontextmanager
async def nats_with(config: str, directory: Path) -> AsyncIterator[str]:
    """A bare server with a configuration of its own; yields its host and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = directory / "nats.conf"
    path.write_text(f'listen: "127.0.0.1:{port}"\n{config}')
    server = await ChildProcess.spawn("bare", [str(find_nats_server()), "-c", str(path)], log_path=directory / "log")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(5.0)


async def test_credentials(tmp_path: Path) -> None:
    async with nats_with('authorization { user: "u", password: "right" }', tmp_path) as address:
        started = time.monotonic()
        with pytest.raises(TransportError, match="refused") as failure:
            async with Transport.open(f"nats://u:wrong@{address}", name="test"):
                pass
        assert time.monotonic() - started < 5
        assert "wrong" not in str(failure.value)
        async with Transport.open(f"nats://u:right@{address}", name="test") as transport:
            assert transport.is_connected


async def test_a_subscription_that_the_server_forbids(tmp_path: Path) -> None:
    permissions = {"subscribe": {"deny": ["secret.>"]}}
    users = json.dumps([{"user": "u", "password": "p", "permissions": permissions}])
    async with (
        nats_with(f"authorization {{ users: {users} }}", tmp_path) as address,
        Transport.open(f"nats://u:p@{address}", name="test") as transport,
    ):
        with suppress(TransportError):
            async with transport.subscribe("secret.a", Note):
                pass
        with pytest.raises(TransportError, match=r"(?i)permissions violation"):
            await asyncio.wait_for(transport.wait_failed(), 5)


async def test_a_loop_that_was_blocked_catches_up(own_nats: EmbeddedNats) -> None:
    """Nothing is lost for a receiver that was away for a while, within its bound."""
    async with pair(own_nats) as (sender, receiver), receiver.subscribe("a", Note) as messages:
        numbers = range(30)
        for number in numbers:
            await sender.publish("a", Note(number=number), floats(MIB))
            if number == 10:
                blocked_at = time.monotonic()
                while unread_bytes(receiver) < MIB // 16:
                    assert time.monotonic() < blocked_at + 5
                    time.sleep(0.01)  # noqa: ASYNC251 - the point of it
        assert [(await next_of(messages)).body.number for _ in numbers] == list(numbers)
        assert receiver.counts.num_dropped == 0


async def test_who_waits_for_jetstream_hears_at_once_that_the_server_was_killed(own_nats: EmbeddedNats) -> None:
    """Its answer went to a connection that is gone; 5 s later is too late for streams that stand still meanwhile."""
    async with Transport.open(own_nats.url, name="asker") as transport:
        jetstream = transport.jetstream(timeout_s=30.0)
        own_nats.kill(signal.SIGSTOP)
        asked = asyncio.create_task(jetstream.account_info())
        await eventually(lambda: bool(jetstream.client._resp_map))
        own_nats.kill()
        done, _ = await asyncio.wait([asked], timeout=10)
        assert isinstance(done.pop().exception(), TimeoutError)
