"""Names that must not collide."""

from __future__ import annotations

import secrets
import time


def new_instance_id() -> str:
    """Return a name for one start of one service."""
    return secrets.token_hex(6)


def new_job_id() -> str:
    """Return a job id that sorts by time of creation: 12 hex digits of milliseconds, then 16 of chance."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
