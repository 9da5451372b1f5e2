"""The memory of a ring, which a sender and a receiver share.

    ┌────────┬───────────┬───────┬───┬─────────────────────────┐
    │ number │ num_bytes │ freed │ - │ payload                 │   a record; each word has 8 bytes
    └────────┴───────────┴───────┴───┴─────────────────────────┘
     the sender writes    0, then number + 1 by who needs the payload no more

It is a memfd: whoever dies leaves nothing behind, and both ends may let go at any time, since the pages live as long
as one mapping of them does. Its pages are reserved when it is made and its size is sealed: no access can fail later.

Order of memory: a payload is written before the message that refers to it passes through the kernel twice, and is read
behind that. `freed` is written by `pwrite` and read by `pread`, system calls behind the last read of the payload and
before the next write to it: whatever reorders loads and stores within a processor does not do so across them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import weakref
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from broker_pipeline.errors import EdgeLostError

HEADER_BYTES = 32
OnRing = Callable[[memoryview], Callable[[], None]]
"""Told of a ring's whole memory when it is mapped, to lock its pages say; it must not keep the view. What it returns is
called when nobody uses the ring any more."""

_HEADER = struct.Struct("<QQQQ")
_FREED = struct.Struct("<Q")
_FREED_OFFSET = 16
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_ring(num_bytes: int) -> int:
    """Return the descriptor of `num_bytes` of new memory, all of it there; `EdgeLostError` when there is none."""
    with ExitStack() as stack:
        try:
            descriptor = os.memfd_create("broker-pipeline-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            stack.callback(os.close, descriptor)
            os.posix_fallocate(descriptor, 0, num_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            raise EdgeLostError(f"no shared memory for a ring of {num_bytes} bytes: {error.strerror}") from error
        stack.pop_all()
    return descriptor


class Ring:
    """One process's mapping. It goes with the last view of it, or the last record that is to be marked as freed."""

    def __init__(self, descriptor: int, on_ring: OnRing | None = None) -> None:
        """Map what `make_ring` made, wherever that was; takes the descriptor over. Raises `EdgeLostError`."""
        with ExitStack() as stack:
            stack.callback(os.close, descriptor)
            self.num_bytes = os.fstat(descriptor).st_size
            memory = _map_sealed(descriptor, self.num_bytes)
            # All views are slices of this array, so that it ends after the last of them, and the mapping after it.
            self._bytes = np.frombuffer(memory, np.uint8)
            # Each page faults when it is touched first: here, since numpy lets go of the interpreter's lock meanwhile,
            # which mmap's own MAP_POPULATE keeps for 70 ms of 64 MiB, and no heartbeat goes out.
            self._bytes[:: mmap.PAGESIZE].max()
            release = on_ring(self._bytes.data) if on_ring is not None else None
            stack.pop_all()
        self._descriptor = descriptor
        self.address = address_of(self._bytes.data)
        """Where the mapping begins."""
        weakref.finalize(self._bytes, _let_go, memory, descriptor, release).atexit = False

    def payload(self, offset: int, num_bytes: int, on_unused: Callable[[], object] | None = None) -> memoryview:
        """Return the payload of a record; `on_unused` is called, by some thread, when the last view of it is gone."""
        start = offset + HEADER_BYTES
        array = self._bytes[start : start + num_bytes]
        if on_unused is not None:
            weakref.finalize(array, on_unused).atexit = False
        return array.data

    def write_header(self, offset: int, number: int, num_bytes: int) -> None:
        """Begin a record, which nobody has freed."""
        os.pwrite(self._descriptor, _HEADER.pack(number, num_bytes, 0, 0), offset)

    def read_header(self, offset: int) -> tuple[int, int, bool]:
        """Return number, size and whether it is freed of a record."""
        number, num_bytes, freed, _ = _HEADER.unpack(os.pread(self._descriptor, HEADER_BYTES, offset))
        return number, num_bytes, freed == number + 1

    def mark_freed(self, offset: int, number: int) -> None:
        """Say that nobody reads or writes a record's payload any more."""
        os.pwrite(self._descriptor, _FREED.pack(number + 1), offset + _FREED_OFFSET)


def _map_sealed(descriptor: int, num_bytes: int) -> mmap.mmap:
    """Map memory that can never lack a page: to touch one that is not there any more would end the process."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        memory = mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED)
    except (OSError, ValueError) as error:
        raise EdgeLostError(f"a ring cannot be mapped: {error}") from error
    if seals & _SEALS != _SEALS:
        raise EdgeLostError("what came as a ring can change its size")
    return memory


def address_of(view: memoryview | bytes) -> int:
    """Return where bytes lie in this process."""
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def _let_go(memory: mmap.mmap, descriptor: int, release: Callable[[], None] | None) -> None:
    """Undo what `on_ring` did while the memory is still mapped; that ends with this function's arguments."""
    if release is not None:
        release()
    os.close(descriptor)
    del memory
