"""What edges are compared with: bare sockets, and a copy within this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np

from trials.bench.edges.sample import BESIDE_PAUSE_S, BESIDE_WINDOW, Sample


class RawSocket:
    """A connection to the far end, which answers each payload with a byte."""

    def __init__(self, address: str, num_bytes: int) -> None:
        """Connect; payloads have `num_bytes`."""
        parts = urlsplit(f"//{address}")
        self._connection = socket.create_connection((parts.hostname or "", parts.port or 0))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._header, self._data = num_bytes.to_bytes(8, "little"), np.ones(num_bytes, np.uint8).data

    def send(self) -> None:
        """Send a payload."""
        self._connection.sendall(self._header)
        self._connection.sendall(self._data)

    def hear(self, num_payloads: int) -> None:
        """Return when so many more were answered."""
        while num_payloads:
            num_payloads -= len(self._connection.recv(num_payloads)) or num_payloads

    def trips(self, num_trips: int, pause_s: float = 0.0) -> list[float]:
        """Return the seconds of payloads that go one after the other."""
        trips = []
        for _ in range(num_trips):
            time.sleep(pause_s)
            started = time.perf_counter()
            self.send()
            self.hear(1)
            trips.append(time.perf_counter() - started)
        return trips

    def close(self) -> None:
        """End it."""
        self._connection.close()


def measure_raw_tcp(address: str, num_bytes: int, num_trips: int, beside_bytes: int) -> Sample:
    """Time payloads as `measure_messages` does."""
    raw = RawSocket(address, num_bytes)
    try:
        if beside_bytes:
            with _flow(address, beside_bytes) as answered:
                raw.trips(2)
                started, before = time.perf_counter(), len(answered)
                trips = raw.trips(num_trips, BESIDE_PAUSE_S)
                num_large = (len(answered) - before) * beside_bytes
                return Sample(trips, num_large / (time.perf_counter() - started))
        trips = raw.trips(num_trips)
        started = time.perf_counter()
        for _ in range(num_trips):
            raw.send()
        raw.hear(num_trips)
        return Sample(trips, num_bytes * num_trips / (time.perf_counter() - started))
    finally:
        raw.close()


@contextmanager
def _flow(address: str, num_bytes: int) -> Iterator[list[None]]:
    """Send large payloads without a pause, from a thread; the list that is yielded grows by each answer."""
    raw, answered, stop = RawSocket(address, num_bytes), list[None](), threading.Event()

    def run() -> None:
        for _ in range(BESIDE_WINDOW):
            raw.send()
        while not stop.is_set():
            raw.hear(1)
            answered.append(None)
            raw.send()
        raw.hear(BESIDE_WINDOW)
        raw.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answered
    finally:
        stop.set()
        thread.join()


def measure_memcpy(num_bytes: int, num_trips: int) -> Sample:
    """Time copies; the second memory is warm."""
    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
    trips = []
    for _ in range(num_trips):
        started = time.perf_counter()
        target[:] = source
        trips.append(time.perf_counter() - started)
    return Sample(trips, num_bytes * num_trips / sum(trips))
