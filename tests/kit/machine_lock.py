"""Gives the machine to one test alone where it is about time, while several processes share the tests.

                 turnstile                room
    most         pass                     shared, while the test runs
    alone        held until it has room   exclusive: whoever comes later waits behind it

Locks of files end with their process, so that nobody waits for a test that was killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TURNSTILE, _ROOM = Path(__file__).parents[1] / "conftest.py", Path(__file__)


@contextmanager
def machine(*, alone: bool) -> Iterator[None]:
    """Share the machine with tests of other processes, or have it alone, while the context is open."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with _ROOM.open() as room:
        with _TURNSTILE.open() as turnstile:
            fcntl.flock(turnstile, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
