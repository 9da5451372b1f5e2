"""A wall clock of its own for every service, which can be set: libfaketime reads the offset from a file.

Monotonic clocks stay true, as they do when an administrator or NTP sets a host's time. Redis and NATS keep the true
time: they are another host.
"""

from __future__ import annotations

import sys
from pathlib import Path

from broker_pipeline.errors import ConfigurationError

_LIBRARIES = Path("/usr/lib")


def library() -> Path | None:
    """Return Debian's libfaketime, None where there is none."""
    return next(_LIBRARIES.glob("*/faketime/libfaketime.so.1"), None) if sys.platform == "linux" else None


def require_clocks() -> None:
    """Raise `ConfigurationError` where clocks cannot be set."""
    if library() is None:
        raise ConfigurationError(
            "clock faults cannot be made: there is no libfaketime; install it (Debian: libfaketime), or leave them out",
            field="faults",
        )


def environment(path: Path) -> dict[str, str]:
    """Return the environment of a process whose clock is off by what the file says."""
    return {
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # What it believes to mend in waits by the monotonic clock has every wait for Python's lock time out late.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def set_clock(path: Path, offset_s: int) -> None:
    """Have the clock be off by this much from the next look on."""
    partial = path.with_suffix(".partial")
    partial.write_text(f"{offset_s:+d}\n")
    partial.replace(path)
