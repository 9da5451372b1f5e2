"""What a check found, and what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "unseen", "warn", "fail"]
"""`unseen`: not looked at, so nothing is known."""


_ASK_ELSEWHERE = "look from a host whose roles may: docs/operations.md, Secrets"


class Finding(msgspec.Struct, frozen=True):
    """One row of the doctor's table."""

    check: str
    level: Level
    found: str
    remedy: str = ""
    """What to do; empty where nothing is wrong."""


def ok(check: str, found: str) -> Finding:
    """Return what is as it should be."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """Return what works, and may be regretted."""
    return Finding(check, "warn", found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """Return what keeps this host from doing its part."""
    return Finding(check, "fail", found, remedy)


def unseen(check: str, needed: str) -> Finding:
    """Return that something was not looked at, since what it takes is not there; that has a row of its own."""
    return Finding(check, "unseen", f"not looked at, for want of {needed}", "see the row that failed")


def denied(check: str, what: str) -> Finding:
    """Return that something was not looked at, since this host's secrets do not allow it."""
    return Finding(check, "unseen", f"{what}: not looked at, this credential may not", _ASK_ELSEWHERE)
