"""What a process needs of its host, open files and room in directories, and what of that is not there.

settings ──► Needs ──┐
                     ├──► shortages: sentences that say what to do
host ──look──► Found ┘
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()

BASE_FILES = 128
"""Connections to NATS and Redis, logs, what libraries hold open."""
_MIB = 2**20
_MANY_FILES = 65_536


@dataclass(frozen=True, slots=True)
class RoomNeed:
    """Free room that a directory's file system has to have, for `purpose`; `remedy` says what to do without it."""

    path: Path
    num_bytes: int
    num_inodes: int
    purpose: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What a process needs."""

    num_files: int = BASE_FILES
    """Open at the same time, connections included."""
    rooms: tuple[RoomNeed, ...] = ()


LEAST = Needs()


@dataclass(frozen=True, slots=True)
class Found:
    """What there is: files that may be open, and free bytes and inodes by directory; None where it is not known."""

    num_files: int
    free: Mapping[Path, tuple[int, int | None] | None]


SHM = RoomNeed(
    Path("/dev/shm"),  # noqa: S108 - looked at, not written to
    num_bytes=_MIB,
    num_inodes=16,
    purpose="sockets of the edges between workers on this host",
    remedy="empty it, start the container with a larger --shm-size, or use --edges tcp",
)


def shortages(needs: Needs, found: Found) -> list[str]:
    """Say what is less than is needed, and what to do; empty where there is enough."""
    said = []
    if found.num_files < needs.num_files:
        said.append(
            f"{found.num_files} files may be open and {needs.num_files} are needed: raise the limit "
            f"(`ulimit -n`, LimitNOFILE of systemd, `--ulimit nofile` of a container)"
        )
    for room in needs.rooms:
        num_bytes, num_inodes = found.free.get(room.path) or (room.num_bytes, None)
        if num_bytes < room.num_bytes:
            sizes = f"{num_bytes / _MIB:.1f} MiB free and {room.num_bytes / _MIB:.1f} MiB"
            said.append(f"{room.path} has {sizes} are needed for {room.purpose}: {room.remedy}")
        if num_inodes is not None and num_inodes < room.num_inodes:
            sizes = f"{num_inodes} inodes free and {room.num_inodes}"
            said.append(f"{room.path} has {sizes} are needed for {room.purpose}: {room.remedy}")
    return said


def look(needs: Needs) -> Found:
    """Find out what there is for what is needed; first lets this process, and what it starts, open what it may."""
    return Found(_raise_file_limit(), {room.path: _free(room.path) for room in needs.rooms})


def say_shortages(needs: Needs) -> None:
    """Log what there is too little of."""
    for shortage in shortages(needs, look(needs)):
        log.warning("host_has_too_little", reason=shortage)


def _raise_file_limit() -> int:
    """Raise the soft limit to the hard one, where that is a number, and return what holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else hard
    if soft in (wanted, resource.RLIM_INFINITY):
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def _free(path: Path) -> tuple[int, int | None] | None:
    """Return free bytes and inodes for this user where a path is, or will be; some file systems count no inodes."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
