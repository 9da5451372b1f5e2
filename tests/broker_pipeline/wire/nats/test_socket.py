"""The socket that nats-py shares with messages: disturbed, and at its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from broker_pipeline.errors import TransportError
from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.wire.nats.connection import NatsConnection, open_connection
from broker_pipeline.wire.nats.message import NatsMessage, header_block, read_headers
from tests.kit.waiting import eventually

LOOPS = [asyncio.SelectorEventLoop, uvloop.new_event_loop]


@dataclass
class Collector:
    """A receiver that keeps what it gets."""

    messages: asyncio.Queue[NatsMessage] = field(default_factory=asyncio.Queue)

    def on_message(self, message: NatsMessage) -> None:
        self.messages.put_nowait(message)

    def place(self, _headers: bytes, _num_bytes: int) -> memoryview | None:
        return None

    def on_lost(self) -> None:
        pass

    def expire(self, now: float) -> None:
        pass

    async def next(self) -> NatsMessage:
        async with asyncio.timeout(5):
            return await self.messages.get()


async def round_trips(connection: NatsConnection) -> None:
    """Messages of several sizes, to ourselves."""
    receiver = Collector()
    subject = f"{connection.inbox}.x"
    async with connection.listen(subject, receiver):
        await connection.barrier()
        for num_bytes in (0, 10, 20_000, 200_000, 900_000):
            payload = os.urandom(num_bytes)
            await connection.publish(subject, payload[:5], payload[5:], headers=header_block({"a": "b"}), reply="r")
            message = await receiver.next()
            assert (message.subject, message.reply, read_headers(message.headers)) == (subject, "r", {"a": "b"})
            assert message.payload == payload


@pytest.mark.parametrize("new_loop", LOOPS)
def test_on_either_loop(tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> None:
        async with (
            EmbeddedNats(tmp_path / "nats") as server,
            open_connection(server.url, "test", on_failed=print) as connection,
        ):
            await round_trips(connection)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


async def test_a_receiver_with_a_bug_ends_the_connection_for_good(nats_url: str) -> None:
    class Broken(Collector):
        def on_message(self, message: NatsMessage) -> None:
            raise ZeroDivisionError(message.subject)

    told: list[TransportError] = []
    async with (
        open_connection(nats_url, "test", on_failed=told.append) as connection,
        connection.listen(f"{connection.inbox}.x", Broken()),
    ):
        await connection.barrier()
        await connection.publish(f"{connection.inbox}.x", b"")
        await eventually(lambda: bool(told))
        assert "ZeroDivisionError" in str(told[0])


async def test_all_of_one_turn_of_the_loop_goes_out_in_one_call_and_in_its_order(nats_url: str) -> None:
    receiver = Collector()
    async with open_connection(nats_url, "turn", on_failed=lambda _: None, timeout_s=5.0) as connection:
        subject = f"{connection.inbox}.x"
        async with connection.listen(subject, receiver):
            await connection.barrier()
            for number in range(20):
                connection.publish_now(subject, b"%d" % number)
            written = connection.socket.unsent_bytes
            assert written > 20 * len(subject), "nothing is sent before the turn ends"
            got = [await receiver.next() for _ in range(20)]
    assert [bytes(message.payload) for message in got] == [b"%d" % number for number in range(20)]


async def test_what_was_just_written_is_sent_before_the_connection_closes(nats_url: str) -> None:
    receiver = Collector()
    async with open_connection(nats_url, "reader", on_failed=lambda _: None, timeout_s=5.0) as reader:
        subject = f"{reader.inbox}.x"
        async with reader.listen(subject, receiver):
            await reader.barrier()
            async with open_connection(nats_url, "writer", on_failed=lambda _: None, timeout_s=5.0) as writer:
                writer.publish_now(subject, b"last")
            assert (await receiver.next()).payload == b"last"


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0", "a\tb", "a\0"])
async def test_what_is_no_subject_is_not_written(nats_url: str, subject: str) -> None:
    async with open_connection(nats_url, "test", on_failed=print) as connection:
        with pytest.raises(TransportError, match="no subject"):
            await connection.publish(subject, b"x")
        if subject:
            with pytest.raises(TransportError, match="no subject"):
                connection.publish_now("a", b"x", reply=subject)
        await round_trips(connection)


@asynccontextmanager
async def man_between(server: EmbeddedNats, nonsense: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Passes bytes on; says `nonsense` to the first client once it has subscribed. Yields its address, and counts."""
    host, port = server.url.removeprefix("nats://").split(":")
    clients: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(clients)
        clients.append(0)
        near, far = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_client: bool) -> None:
            while chunk := await source.read(65536):
                if is_client and not number and b"SUB " in chunk:
                    writer.write(nonsense)
                target.write(chunk)
            target.close()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(copy(reader, far, is_client=True))
                tasks.create_task(copy(near, writer, is_client=False))
        except* (ConnectionError, RuntimeError):
            pass
        finally:
            writer.close()
            far.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as between:
        yield f"nats://127.0.0.1:{between.sockets[0].getsockname()[1]}", clients


@pytest.mark.parametrize("nonsense", [b"MSG a 1 x\r\n", b"x" * 200_000, b"HELLO\r\n"])
async def test_a_server_that_talks_nonsense_is_left_and_connected_to_again(
    own_nats: EmbeddedNats, nonsense: bytes
) -> None:
    async with (
        man_between(own_nats, nonsense) as (url, clients),
        open_connection(url, "test", on_failed=print) as connection,
    ):
        await round_trips(connection)
        assert connection.num_reconnects == 1
        assert len(clients) == 2


async def test_a_lost_connection(own_nats: EmbeddedNats) -> None:
    """nats-py may write to it before it knows, and is told where it reads and drains."""
    async with open_connection(own_nats.url, "test", on_failed=print) as connection:
        connection_socket = connection.socket
        link = connection_socket._link
        assert link
        link.transport.abort()
        assert not connection_socket.is_open
        assert not connection.is_connected
        connection_socket.write(b"PING\r\n")
        connection_socket.writelines([b"PING\r\n"])
        with pytest.raises(ConnectionResetError):
            await connection_socket.drain()
        with pytest.raises(TransportError, match="reconnecting"):
            await connection.publish("a", b"x")
        assert await connection_socket.wait_room() is False
        await connection.barrier()
        await round_trips(connection)
