"""Messages whose payload takes an edge, over a real nats-server: as they were sent, whatever becomes of the edge."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_pipeline import subjects
from broker_pipeline.errors import NoResponderError, PartError, SlowConsumerError
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer, EdgeRef, PeerLost
from broker_pipeline.messages.workers import CarriedCounts
from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.outgoing import MIN_EDGE_BYTES, OutgoingEdges
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.edges.shm.sender import ShmDialer
from broker_pipeline.wire.subscription import Subscription
from broker_pipeline.wire.transport import Transport
from broker_pipeline.wire.wire_tensor import WireTensor
from tests.broker_pipeline.wire.test_transport import Note, floats, next_of
from tests.kit.fake_clock import FakeClock
from tests.kit.waiting import eventually

RING_BYTES = 2**20


@dataclass(slots=True)
class Ends:
    """Two workers, and what the second one hears at `subject`."""

    sender: Transport
    receiver: Transport
    notes: Subscription[Note]
    subject: str
    malformed: list[str]

    async def settle(self) -> None:
        """Send until a message takes an edge."""

        async def has_edge() -> bool:
            await self.sender.publish(self.subject, Note(number=-1), floats(MIN_EDGE_BYTES))
            await next_of(self.notes)
            return "shm" in self.sender.counts.carried

        await eventually(has_edge)

    def num_carried(self, kind: str = "shm") -> int:
        return self.sender.counts.carried.get(kind, CarriedCounts()).num_messages

    async def passes(self, num_bytes: int, number: int = 0) -> None:
        tensors = floats(num_bytes)
        await self.sender.publish(self.subject, Note(number=number), tensors)
        received = await next_of(self.notes)
        assert (received.body.number, received.tensors["hidden"].data) == (number, tensors["hidden"].data)


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> EdgeSettings:
    return EdgeSettings("shm", RING_BYTES, shm_directory=tmp_path_factory.mktemp("shm"))


@asynccontextmanager
async def two_ends(
    url: str, namespace: str, settings: EdgeSettings, theirs: EdgeSettings | None = None, max_pending_bytes: int = 2**26
) -> AsyncIterator[Ends]:
    root, malformed = subjects.worker_root(namespace, "main", "stage", "b", "1"), list[str]()
    async with AsyncExitStack() as stack:
        sender, receiver = [
            await stack.enter_async_context(Transport.open(url, name=name)) for name in ("sender", "receiver")
        ]
        notes = await stack.enter_async_context(
            receiver.subscribe(
                subjects.work(root),
                Note,
                max_pending_bytes=max_pending_bytes,
                on_malformed=lambda error, _: malformed.append(str(error)),
            )
        )
        await stack.enter_async_context(receiver.use_edges(root, theirs or settings))
        await stack.enter_async_context(
            sender.use_edges(subjects.worker_root(namespace, "main", "stage", "a", "1"), settings)
        )
        yield Ends(sender, receiver, notes, subjects.work(root), malformed)


@pytest.fixture
async def ends(nats_url: str, namespace: str, settings: EdgeSettings) -> AsyncIterator[Ends]:
    async with two_ends(nats_url, namespace, settings) as opened:
        await opened.settle()
        yield opened


async def test_payloads_take_the_edge_and_small_ones_do_not(ends: Ends) -> None:
    before = ends.num_carried()
    for num_bytes in (0, 4, MIN_EDGE_BYTES - 4):
        await ends.passes(num_bytes)
    assert ends.num_carried() == before
    sizes = (MIN_EDGE_BYTES, 100_000, RING_BYTES - 64)
    for num_bytes in sizes:
        await ends.passes(num_bytes)
    assert ends.num_carried() == before + len(sizes)
    assert ends.sender.counts.carried["shm"].num_bytes == sum(sizes) + before * MIN_EDGE_BYTES


async def test_several_tensors_lie_as_the_table_says(ends: Ends) -> None:
    tensors = {
        "hidden": WireTensor.from_numpy(np.arange(5001, dtype=np.float32)),
        "empty": WireTensor.from_numpy(np.empty((0, 3), np.int32)),
        "positions": WireTensor.from_numpy(np.arange(9, dtype=np.int32).reshape(3, 3)),
    }
    await ends.sender.publish(ends.subject, Note(number=1), tensors)
    received = await next_of(ends.notes)
    assert received.is_lent
    assert {name: bytes(tensor.data) for name, tensor in received.tensors.items()} == {
        name: bytes(tensor.data) for name, tensor in tensors.items()
    }


async def test_a_request_takes_the_edge_and_its_answer_comes_back(ends: Ends) -> None:
    async def answer() -> None:
        received = await next_of(ends.notes)
        await received.respond(Note(number=7), received.tensors)

    before, tensors = ends.num_carried(), floats(100_000)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(answer())
        got = await ends.sender.request(ends.subject, Note(), tensors, reply_type=Note, timeout_s=5)
    assert (got.body.number, got.tensors["hidden"].data) == (7, tensors["hidden"].data)
    assert ends.num_carried() == before + 1


async def test_metadata_of_any_size_goes_with_it(ends: Ends) -> None:
    for num_characters in (70_000, 3 * 2**20):
        text, tensors = "x" * num_characters, floats(MIN_EDGE_BYTES)
        await ends.sender.publish(ends.subject, Note(text=text), tensors)
        received = await next_of(ends.notes)
        assert (received.body.text, received.tensors["hidden"].data) == (text, tensors["hidden"].data)
        assert received.is_lent


async def test_what_is_placed_is_not_copied(ends: Ends) -> None:
    room = ends.sender.place(ends.subject, 8000 + 100)
    assert room is not None
    array = np.frombuffer(room[:8000], np.float32)
    array[:] = np.arange(2000)
    before = ends.num_carried()
    tensors = {"hidden": WireTensor.from_numpy(array), "positions": WireTensor.from_numpy(np.arange(3, dtype=np.int32))}
    await ends.sender.publish(ends.subject, Note(), tensors)
    received = await next_of(ends.notes)
    assert received.tensors["hidden"].to_numpy().tolist() == list(range(2000))
    array[0] = -1  # seen by the receiver, since it is the same memory
    assert received.tensors["hidden"].to_numpy()[0] == -1
    assert ends.num_carried() == before + 1


async def test_a_full_ring_costs_a_detour_and_nothing_else(ends: Ends) -> None:
    for number in range(8):
        await ends.sender.publish(ends.subject, Note(number=number), floats(RING_BYTES // 4))
    num_detours = ends.num_carried("nats")
    assert num_detours > 0
    held = [await next_of(ends.notes) for _ in range(8)]
    assert sorted(received.body.number for received in held) == list(range(8))
    assert {received.is_lent for received in held} == {True, False}
    held.clear()
    await ends.passes(RING_BYTES // 2)
    assert ends.num_carried("nats") == num_detours
    assert ends.sender.counts.num_edges_lost == 0


async def test_what_finds_no_room_at_the_receiver_is_said_and_given_back(
    nats_url: str, namespace: str, settings: EdgeSettings
) -> None:
    async with two_ends(nats_url, namespace, settings, max_pending_bytes=600_000) as ends:
        await ends.settle()
        for number in range(3):
            await ends.sender.publish(ends.subject, Note(number=number), floats(250_000))
        await ends.sender.link.barrier()
        await ends.receiver.link.barrier()
        assert [(await next_of(ends.notes)).body.number for _ in range(2)] == [0, 1]
        with pytest.raises(SlowConsumerError):
            await next_of(ends.notes)
        num_detours = ends.num_carried("nats")
        for _ in range(4):
            await ends.passes(RING_BYTES // 2)
        assert ends.num_carried("nats") == num_detours, "what was dropped takes no part of the ring"


@pytest.mark.parametrize(
    "ref",
    [
        b"{}",
        b"not json",
        msgspec.json.encode(EdgeRef("0" * 32, 0, 4096)),
        b'{"edge":"../../x","number":0,"num_bytes":4096}',
        b'{"edge":"a","number":-1,"num_bytes":4096}',
    ],
    ids=str,
)
async def test_a_forged_ref_is_malformed_and_answered(ends: Ends, ref: bytes) -> None:
    small = ends.sender.link.small
    frame = Frame(b'{"number":1}', (), 0)
    with ends.sender.link.expect(frame) as (reply, answer):
        block = b"NATS/1.0\r\nBp-Edge: " + ref + b"\r\n\r\n"
        await small.publish(ends.subject, (12).to_bytes(4, "little"), frame.metadata, headers=block, reply=reply)
        with pytest.raises(PartError):
            await asyncio.wait_for(answer, 5)
    assert len(ends.malformed) == 1
    await ends.passes(100_000)


async def test_a_lost_edge_costs_a_detour_and_comes_back(ends: Ends) -> None:
    ends.sender._edges._peers[ends.subject.removesuffix(".work")].edge._socket.shutdown(2)  # type: ignore[union-attr]
    await eventually(lambda: ends.sender.counts.num_edges_lost == 1)
    before = ends.sender.counts
    await ends.passes(100_000)
    assert ends.num_carried("nats") == before.carried["nats"].num_messages + 1

    async def is_back() -> bool:
        await ends.passes(100_000)
        return ends.sender.counts.carried["shm"].num_messages > before.carried["shm"].num_messages

    await eventually(is_back)


async def test_edges_are_made_anew_when_messages_may_be_lost(
    own_nats: EmbeddedNats, namespace: str, settings: EdgeSettings
) -> None:
    async with two_ends(own_nats.url, namespace, settings) as ends:
        await ends.settle()
        await own_nats.stop()
        await own_nats.start()
        await eventually(lambda: ends.sender.is_connected and ends.receiver.is_connected, timeout_s=20)
        await eventually(lambda: ends.sender.counts.num_reconnects >= 2)

        async def is_new() -> bool:
            await ends.passes(100_000)
            return ends.sender.counts.num_edges_lost == 1

        await eventually(is_new)
        await eventually(lambda: bool(ends.sender._edges.kinds))  # without another payload


async def test_either_end_reports_the_other_one_when_an_edge_ends(
    nats_url: str, namespace: str, settings: EdgeSettings, transport: Transport
) -> None:
    reported: set[str] = set()
    lost_peers = transport.subscribe(subjects.lost_peers(namespace, "main"), PeerLost)
    async with lost_peers as reports, two_ends(nats_url, namespace, settings) as ends:
        await ends.settle()
        receiver_root = ends.subject.removesuffix(".work")
        ends.sender._edges._peers[receiver_root].edge._socket.shutdown(2)  # type: ignore[union-attr]
        async with asyncio.timeout(10):
            while len(reported) < 2:
                reported.add((await anext(reports)).body.root)
    assert reported == {receiver_root, subjects.worker_root(namespace, "main", "stage", "a", "1")}


@pytest.mark.parametrize("choice", ["nats", "tcp"])
async def test_a_receiver_without_such_an_edge_is_sent_everything_by_nats(
    nats_url: str, namespace: str, settings: EdgeSettings, choice: str
) -> None:
    theirs = replace(settings, choice=choice)
    async with two_ends(nats_url, namespace, settings, theirs) as ends:
        for _ in range(3):
            await ends.passes(100_000)
        assert ends.num_carried("nats") == 3
        assert list(ends.sender.counts.carried) == ["nats"]
        assert ends.sender.place(ends.subject, 100_000) is None


async def test_with_an_unusable_directory_everything_goes_by_nats(
    nats_url: str, namespace: str, settings: EdgeSettings, tmp_path: Path
) -> None:
    (tmp_path / "shm").write_text("")
    async with two_ends(nats_url, namespace, settings, replace(settings, shm_directory=tmp_path / "shm")) as ends:
        await ends.passes(100_000)
        await ends.passes(100_000)


async def test_a_way_that_cannot_be_made_is_tried_less_and_less() -> None:
    clock, asked = FakeClock(), list[float]()

    async def ask(root: str, ask: EdgeAsk) -> EdgeOffer:
        asked.append(clock())
        assert ask.kinds == ("shm",)
        raise NoResponderError(root)

    edges = OutgoingEdges(ask, [ShmDialer()], clock=clock, jitter=lambda: 1.0)
    frame = Frame(b"{}", (os.urandom(MIN_EDGE_BYTES),), MIN_EDGE_BYTES)
    for _ in range(1000):
        assert await edges.carry("bp.main.worker.a.1.work", frame) is frame
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.pass_s(0.25)
    assert asked[:8] == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5]
    assert edges.carried["nats"].num_messages == 1000
    assert await edges.carry("bp.main.conductor.1.results", frame) is frame
    assert edges.carried["nats"].num_messages == 1000, "what is not for a worker was never meant for an edge"
    await edges.close()
