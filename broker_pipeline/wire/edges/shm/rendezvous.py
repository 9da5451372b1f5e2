"""The unix socket by which two processes of one machine agree on a ring.

sender    connect ─► token ────────────►  receiver   makes a ring
          maps it ◄─ Admission, memfd ──
          ... open as long as both live: its end says at once that the other one is gone ...
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import msgspec

from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.base import WireStruct
from broker_pipeline.messages.edges import Token

MAX_PACKET_BYTES = 1024
_FAMILY = (socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
_SUFFIX = ".sock"


class Admission(WireStruct, frozen=True, kw_only=True):
    """What a receiver answers to a token: the name of the edge whose ring it sends along, or why there is none."""

    edge: Token | None = None
    refusal: str = ""


def default_directory() -> Path:
    """Return where this user's sockets are: containers that share memory (`ipc: host`) see one another's."""
    return Path("/dev/shm") / f"broker-pipeline-{os.getuid()}"  # noqa: S108 - owner and mode are checked


def own_directory(path: Path) -> None:
    """Make a directory that is this user's alone. Raises `EdgeLostError` where it cannot be, or is somebody else's."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise EdgeLostError(f"{path} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EdgeLostError(f"{path} has to be a directory that is this user's, with mode 0700")


def listen_in(directory: Path, name: str, backlog: int) -> tuple[socket.socket, Path]:
    """Listen on a socket in `directory`, and return it and its path. Raises `EdgeLostError`."""
    path = directory / f"{name}{_SUFFIX}"
    unfinished = path.with_suffix(".new")
    listener = socket.socket(*_FAMILY)
    try:
        listener.bind(str(unfinished))
        listener.listen(backlog)
        unfinished.rename(path)  # shown only once it answers: see `remove_stale`
    except OSError as error:
        listener.close()
        raise EdgeLostError(f"cannot listen on {path}: {error}") from error
    return listener, path


def remove_stale(directory: Path) -> int:
    """Remove sockets on which nobody answers, that a killed process left, and return how many there were."""
    num_removed = 0
    for path in directory.glob(f"*{_SUFFIX}"):
        with socket.socket(*_FAMILY) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                num_removed += 1
            except OSError:  # gone meanwhile, or so busy that it does not answer
                continue
    return num_removed


def connect(path: str) -> socket.socket | None:
    """Connect to a socket, or return None where it cannot be reached: from another machine, or as another user."""
    sock = socket.socket(*_FAMILY)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


async def readable(sock: socket.socket) -> None:
    """Return when something has come, or the other end is gone."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def send_admission(sock: socket.socket, admission: Admission, descriptor: int | None = None) -> None:
    """Answer a token; the descriptor remains the caller's. Raises OSError where the other end is gone."""
    socket.send_fds(sock, [msgspec.json.encode(admission)], [] if descriptor is None else [descriptor])


async def receive_admission(sock: socket.socket) -> tuple[str, int]:
    """Return the name of the edge, and its ring's descriptor. Raises `EdgeLostError` where there is none."""
    await readable(sock)
    try:
        packet, descriptors, _, _ = socket.recv_fds(sock, MAX_PACKET_BYTES, 1)
        admission = msgspec.json.decode(packet, type=Admission)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise EdgeLostError(f"no ring came: {error}") from error
    if admission.edge is not None and descriptors:
        return admission.edge, descriptors[0]
    for descriptor in descriptors:
        os.close(descriptor)
    raise EdgeLostError(admission.refusal or "an answer without a ring came")
