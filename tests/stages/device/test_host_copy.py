"""Tensors on their way from a device to where they are sent from, and from where they arrived to a device."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from broker_pipeline.wire.edges.shm.ring import OnRing, address_of
from broker_pipeline.wire.edges.shm.sender import ShmDialer
from stages.device.host_copy import HostCopy, to_device
from stages.device.page_lock import lock_pages
from stages.worker.tensors import to_wire
from tests.broker_pipeline.wire.edges.shm.shm_pair import frame_of, shm_pair

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
async def test_hidden_states_are_copied_to_where_they_are_sent_from(tmp_path: Path, dtype: torch.dtype) -> None:
    hidden = torch.randn(37, 64).to(dtype)
    async with shm_pair(tmp_path / "shm") as pair:
        copied = HostCopy(hidden, None, lambda num_bytes: pair.sender.place(num_bytes + 100)).wait()
        assert copied is not None
        assert torch.equal(copied, hidden)
        wire = to_wire(copied)
        ref = await pair.sender.send(frame_of(wire.data, b"positions"))
        assert ref.number == 0, "in the record that was placed"
        received = pair.receiver.take(ref)
        assert address_of(received) - pair.receiver._ring.address == address_of(wire.data) - pair.sender._ring.address
        assert torch.equal(torch.frombuffer(received[:-9], dtype=dtype).view(37, 64), hidden)


async def test_without_room_they_stay_where_they_are() -> None:
    hidden = torch.randn(3, 64)
    assert HostCopy(hidden, None, lambda _: None).wait() is hidden
    assert HostCopy(hidden, None).wait() is hidden
    assert HostCopy(None, None, lambda _: None).wait() is None
    empty = torch.empty(0, 64)
    assert HostCopy(empty, None, lambda _: memoryview(b"")).wait() is empty


@pytest.mark.gpu
@pytest.mark.parametrize("is_locked", [True, False])
async def test_from_one_gpu_buffer_over_a_ring_to_another(tmp_path: Path, *, is_locked: bool) -> None:
    device, stream = torch.device("cuda"), torch.cuda.Stream()
    hidden = torch.randn(64, 64, device=device).to(torch.bfloat16)
    held: list[memoryview] = []
    on_ring: OnRing | None = (lambda memory: lock_pages(device, memory)) if is_locked else None
    async with shm_pair(tmp_path / "shm", on_ring=on_ring, dial=lambda: ShmDialer(on_ring)) as pair:
        for _ in range(20):
            copy = HostCopy(hidden, stream, lambda num_bytes: pair.sender.place(num_bytes + 64))
            host = copy.wait()
            assert host is not None
            assert host.is_pinned()
            ring = range(pair.sender._ring.address, pair.sender._ring.address + pair.sender._ring.num_bytes)
            assert (host.data_ptr() in ring) == is_locked
            held.append(pair.receiver.take(await pair.sender.send(frame_of(to_wire(host).data))))
            arrived = torch.frombuffer(held[0], dtype=torch.bfloat16).view(64, 64)
            assert arrived.is_pinned() == is_locked
            assert torch.equal(to_device(arrived, device), hidden)
            hidden = hidden + 1
            del arrived, copy, host
            held.clear()
    gc.collect()
    torch.cuda.synchronize()
