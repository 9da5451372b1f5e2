"""Payloads through a ring in shared memory; what is forged, full, stale, refused or gone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_pipeline.errors import EdgeFullError, EdgeLostError, PartError
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer, EdgeRef
from broker_pipeline.wire.edges.edge import IncomingEdge
from broker_pipeline.wire.edges.shm.receiver import RingLimits
from broker_pipeline.wire.edges.shm.rendezvous import own_directory, remove_stale
from broker_pipeline.wire.edges.shm.ring import Ring, address_of, make_ring
from broker_pipeline.wire.edges.shm.sender import STUCK_S, ShmDialer
from broker_pipeline.wire.edges.tokens import TOKEN_TTL_S, Tokens
from tests.broker_pipeline.wire.edges.shm.shm_pair import RING_BYTES, frame_of, random_frame, serving, shm_pair
from tests.kit.fake_clock import FakeClock
from tests.kit.waiting import eventually


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shm") / "s"


async def test_payloads_arrive_whatever_their_size_and_the_ring_is_used_again(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        for num_bytes in [1, 16, 17, 1000, RING_BYTES - 32, *[RING_BYTES // 3] * 10]:
            frame, content = random_frame(num_bytes)
            assert bytes(pair.receiver.take(await pair.sender.send(frame))) == content


async def test_views_keep_a_payload_and_payloads_are_freed_in_any_order(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        third = RING_BYTES // 3 - 64
        sent = [random_frame(third) for _ in range(3)]
        views = [pair.receiver.take(await pair.sender.send(frame)) for frame, _ in sent]
        with pytest.raises(EdgeFullError):
            await pair.sender.send(random_frame(third)[0])
        part = np.frombuffer(views[0][100:200], np.uint8)
        del views[0]
        with pytest.raises(EdgeFullError):
            await pair.sender.send(random_frame(third)[0])
        assert bytes(part.tobytes()) == sent[0][1][100:200]
        del part
        assert [bytes(view) for view in views] == [content for _, content in sent[1:]]
        frame, content = random_frame(third)
        assert bytes(pair.receiver.take(await pair.sender.send(frame))) == content


async def test_a_payload_is_written_where_it_is_sent_from(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        room = pair.sender.place(1000 + 64)
        assert room is not None
        assert len(room) == 1064
        room[:1000] = b"x" * 1000
        frame = frame_of(room[:1000], b"pad", b"more")
        ref = await pair.sender.send(frame)
        assert (ref.offset, ref.num_bytes) == (0, 1007), "in the record that was placed, and no other"
        assert bytes(pair.receiver.take(ref)) == b"x" * 1000 + b"padmore"


async def test_a_send_that_is_cancelled_while_another_thread_copies_gives_its_room_back(directory: Path) -> None:
    async with shm_pair(directory, num_bytes=2**20) as pair:
        frame, content = random_frame(2**20 - 64)
        sending = asyncio.create_task(pair.sender.send(frame))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

        async def is_sent() -> bool:
            with suppress(EdgeFullError):
                return bytes(pair.receiver.take(await pair.sender.send(frame))) == content
            return False

        await eventually(is_sent)


async def test_room_that_is_not_sent_is_given_back(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        room = pair.sender.place(RING_BYTES // 2)
        assert room is not None
        assert pair.sender.place(RING_BYTES // 2) is None
        too_long = frame_of(room, b"more than was asked for")
        ref = await pair.sender.send(frame_of(b"small"))
        with pytest.raises(EdgeFullError):
            await pair.sender.send(too_long)
        pair.receiver.take(ref).release()
        del room, too_long
        assert pair.sender.place(RING_BYTES - 32) is not None


async def test_pieces_in_foreign_memory_are_copied(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        content = np.arange(1000, dtype=np.uint8)
        ref = await pair.sender.send(frame_of(content.data, b"tail"))
        content[:] = 0
        assert bytes(pair.receiver.take(ref)) == bytes(np.arange(1000, dtype=np.uint8)) + b"tail"


@pytest.mark.parametrize(
    "forged",
    [
        {"number": 1},
        {"offset": 16},
        {"offset": 8},
        {"offset": RING_BYTES},
        {"offset": 2**61},
        {"num_bytes": 99},
        {"num_bytes": 2**30},
    ],
    ids=str,
)
async def test_a_ref_is_believed_only_as_far_as_the_ring_says_the_same(directory: Path, forged: dict[str, int]) -> None:
    async with shm_pair(directory) as pair:
        ref = await pair.sender.send(random_frame(100)[0])
        with pytest.raises(PartError):
            pair.receiver.take(msgspec.structs.replace(ref, **forged))


async def test_a_payload_is_taken_once(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        ref = await pair.sender.send(random_frame(100)[0])
        view = pair.receiver.take(ref)
        with pytest.raises(PartError):
            pair.receiver.take(ref)
        del view
        with pytest.raises(PartError):
            pair.receiver.take(ref)


async def test_a_record_that_nobody_frees_costs_the_edge_in_the_end(directory: Path) -> None:
    clock = FakeClock()
    async with shm_pair(directory) as pair:
        pair.sender._clock = clock
        frame = random_frame(RING_BYTES // 2)[0]
        await pair.sender.send(frame)
        for seconds in (0, STUCK_S - 1):
            clock.pass_s(seconds)
            with pytest.raises(EdgeFullError):
                await pair.sender.send(frame)
        clock.pass_s(1)
        with pytest.raises(EdgeLostError):
            await pair.sender.send(frame)
        assert pair.sender.lost.done()
        await eventually(pair.receiver.lost.done)


async def test_what_was_sent_can_be_read_when_the_sender_is_gone(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        frame, content = random_frame(100)
        ref = await pair.sender.send(frame)
        await pair.sender.close()
        await eventually(pair.receiver.lost.done)
        assert bytes(pair.receiver.take(ref)) == content
        assert pair.sender.place(100) is None
        with pytest.raises(EdgeLostError):
            await pair.sender.send(frame)


async def test_a_server_that_ends_is_noticed_at_once(directory: Path) -> None:
    incoming: list[IncomingEdge] = []
    async with serving(directory, incoming) as server:
        sender = await ShmDialer().connect(server.offer(EdgeOffer()))
    assert sender is not None
    await eventually(sender.lost.done)
    assert not sockets_in(directory)


async def test_pages_are_locked_as_long_as_anybody_uses_the_ring(directory: Path) -> None:
    locked: list[int] = []

    def lock(view: memoryview) -> object:
        address = address_of(view)
        locked.append(address)
        return lambda: locked.remove(address)

    async with shm_pair(directory, on_ring=lock, dial=lambda: ShmDialer(lock)) as pair:  # type: ignore[arg-type]
        assert len(locked) == 2
        view = pair.receiver.take(await pair.sender.send(frame_of(b"x" * 100)))
        pair.incoming.clear()
        await pair.sender.close()
    del pair
    gc.collect()
    assert len(locked) == 1, "the receiver still has a view"
    assert bytes(view) == b"x" * 100
    del view
    gc.collect()
    assert not locked


# --- who may connect ------------------------------------------------------------------------------------------------


@pytest.mark.alone
async def test_others_go_on_while_a_ring_is_mapped() -> None:
    """A heartbeat that waits for the interpreter's lock costs a worker its sessions."""
    loop = asyncio.get_running_loop()
    descriptor = await asyncio.to_thread(make_ring, 256 * 2**20)
    started = loop.time()
    mapping = asyncio.create_task(asyncio.to_thread(Ring, descriptor))
    times = [started]
    while not mapping.done():
        await asyncio.sleep(0.001)
        times.append(loop.time())
    longest = max(later - earlier for earlier, later in itertools.pairwise(times))
    assert longest < (loop.time() - started) / 2


async def test_a_token_is_good_once(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        offer = pair.server.offer(EdgeOffer())
        again = await ShmDialer().connect(offer)
        assert again is not None
        with pytest.raises(EdgeLostError):
            await ShmDialer().connect(offer)
        await again.close()


@pytest.mark.parametrize("token", [b"forged", b"\xff\xfe", b"x" * 2000])
async def test_without_a_token_there_is_no_ring(directory: Path, token: bytes) -> None:
    incoming: list[IncomingEdge] = []
    async with serving(directory, incoming) as server:
        offer = server.offer(EdgeOffer()).shm
        assert offer is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(offer.path)
            stranger.send(token)
            stranger.settimeout(5)
            assert await asyncio.to_thread(stranger.recv, 100) == b""
        assert not incoming


def test_tokens_expire_and_the_oldest_of_very_many_is_void() -> None:
    clock = FakeClock()
    tokens = Tokens(clock=clock)
    first = tokens.issue()
    clock.pass_s(TOKEN_TTL_S)
    assert tokens.redeem(first) is None
    old, *_, new = [tokens.issue(EdgeAsk(kinds=(), root=f"holder-{number}")) for number in range(300)]
    assert tokens.redeem(old) is None
    assert [tokens.redeem(new) for _ in range(2)] == [EdgeAsk(kinds=(), root="holder-299"), None]


async def test_no_more_rings_than_are_allowed(directory: Path) -> None:
    incoming: list[IncomingEdge] = []
    async with serving(directory, incoming, RingLimits(RING_BYTES, max_rings=1, linger_s=0.1)) as server:
        offers = [server.offer(EdgeOffer()) for _ in range(2)]
        first = await ShmDialer().connect(offers[0])
        assert first is not None
        assert server.offer(EdgeOffer()).shm is None
        with pytest.raises(EdgeLostError):
            await ShmDialer().connect(offers[1])
        await first.close()
        await eventually(incoming[0].lost.done)
        assert server.offer(EdgeOffer()).shm is None, "it is still read"
        await eventually(lambda: server.offer(EdgeOffer()).shm is not None)


async def test_an_offer_of_another_machine_leads_nowhere(directory: Path) -> None:
    async with shm_pair(directory) as pair:
        offer = pair.server.offer(EdgeOffer())
        assert offer.shm is not None
        elsewhere = msgspec.structs.replace(offer, shm=msgspec.structs.replace(offer.shm, path="/dev/shm/no/such"))
        assert await ShmDialer().connect(elsewhere) is None
        assert await ShmDialer().connect(EdgeOffer()) is None


# --- a peer is killed ------------------------------------------------------------------------------------------------

SENDER = """
import asyncio, msgspec, sys
from broker_pipeline.messages.edges import EdgeOffer
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.shm.sender import ShmDialer
async def main():
    edge = await ShmDialer().connect(msgspec.json.decode(sys.argv[1], type=EdgeOffer))
    ref = await edge.send(Frame(b"{}", (b"last words",), 10))
    print(msgspec.json.encode(ref).decode(), file=sys.stderr, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""

RECEIVER = """
import asyncio, msgspec, pathlib, sys
from broker_pipeline.messages.edges import EdgeOffer
from broker_pipeline.wire.edges.shm.receiver import RingLimits, ShmServer
async def main():
    async with ShmServer(print, RingLimits(65536), directory=pathlib.Path(sys.argv[1])) as server:
        print(msgspec.json.encode(server.offer(EdgeOffer())).decode(), file=sys.stderr, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def started(script: str, argument: str) -> tuple[asyncio.subprocess.Process, bytes]:
    """Run a script and return its process, and the first line that it says."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, argument, stderr=asyncio.subprocess.PIPE)
    assert child.stderr is not None
    return child, await child.stderr.readline()


async def test_of_a_killed_sender_what_it_sent_can_be_read(directory: Path) -> None:
    incoming: list[IncomingEdge] = []
    async with serving(directory, incoming) as server:
        doomed, said = await started(SENDER, msgspec.json.encode(server.offer(EdgeOffer())).decode())
        doomed.kill()
        await doomed.wait()
        await eventually(incoming[0].lost.done)
        view = incoming[0].take(msgspec.json.decode(said, type=EdgeRef))
        assert isinstance(view, memoryview)
        assert bytes(view) == b"last words"


async def test_that_a_receiver_is_killed_is_noticed_at_once(directory: Path) -> None:
    doomed, said = await started(RECEIVER, str(directory))
    edge = await ShmDialer().connect(msgspec.json.decode(said, type=EdgeOffer))
    assert edge is not None
    room = edge.place(100)
    assert room is not None
    doomed.kill()
    await doomed.wait()
    await eventually(edge.lost.done, timeout_s=1.0)
    room[:] = b"x" * 100  # the memory is still there, for whoever is about to write to it
    with pytest.raises(EdgeLostError):
        await edge.send(frame_of(room))


def sockets_in(directory: Path) -> list[Path]:
    return list(directory.glob("*.sock"))


# --- the directory --------------------------------------------------------------------------------------------------


async def test_sockets_of_killed_processes_are_removed_and_those_of_living_ones_are_not(directory: Path) -> None:
    own_directory(directory)
    script = f"""
import asyncio, pathlib
from broker_pipeline.wire.edges.shm.receiver import RingLimits, ShmServer
async def main():
    async with ShmServer(print, RingLimits(4096), directory=pathlib.Path({str(directory)!r})):
        await asyncio.sleep(60)
asyncio.run(main())
"""
    doomed = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    await eventually(lambda: len(sockets_in(directory)) == 1, timeout_s=30)
    assert await asyncio.to_thread(remove_stale, directory) == 0
    doomed.kill()
    await doomed.wait()
    stale = sockets_in(directory)
    assert len(stale) == 1
    async with shm_pair(directory):
        assert len(sockets_in(directory)) == 1
        assert sockets_in(directory) != stale


@pytest.mark.parametrize("kind", ["file", "open", "link", "missing"])
async def test_a_directory_that_is_not_ours_alone_is_not_used(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "shm"
    if kind == "file":
        path.write_text("")
    elif kind == "open":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = tmp_path / "no" / "such"
    async with serving(path, []) as server:
        assert server.offer(EdgeOffer()).shm is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory somebody else's")
async def test_a_directory_of_another_user_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "shm"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    async with serving(path, []) as server:
        assert server.offer(EdgeOffer()).shm is None


# --- memory ---------------------------------------------------------------------------------------------------------


async def test_without_memory_for_a_ring_the_sender_hears_why(directory: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    incoming: list[IncomingEdge] = []
    async with serving(directory, incoming, RingLimits(2**30)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # of a memfd as well
        try:
            with pytest.raises(EdgeLostError, match="no shared memory for a ring of 1073741824 bytes: File too large"):
                await ShmDialer().connect(server.offer(EdgeOffer()))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not incoming


async def test_a_ring_that_could_shrink_is_refused() -> None:
    with pytest.raises(EdgeLostError):
        Ring(os.memfd_create("unsealed"))
    descriptor = make_ring(4096)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    Ring(descriptor)


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_ring_leaves_no_descriptor_behind(directory: Path) -> None:
    before = num_descriptors()
    async with shm_pair(directory) as pair:
        await pair.sender.send(frame_of(b"x" * 100))
    del pair
    gc.collect()
    assert num_descriptors() == before
