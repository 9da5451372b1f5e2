"""What `up` looks at before it starts anything: whether it may listen where it shall, and write where it must."""

from __future__ import annotations

import socket
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.host_room import BASE_FILES, Needs, RoomNeed
from broker_pipeline.process.terminal import printable
from broker_pipeline.tools.local.plan import LocalSettings

_MIB = 2**20
_FILES_PER_SERVICE = 40
"""Connections of one to NATS and to Redis, which are the servers' files."""
_FOLDERS = ("logs", "run", "nats", "redis")


def check_start(settings: LocalSettings) -> None:
    """Raise `ConfigurationError` where the gateway could not listen now, or a directory cannot be made."""
    check_port(settings.host, settings.port)
    for folder in _FOLDERS:
        make_directory(settings.data_dir / folder, "data_dir")
    if settings.profile is not None:
        make_directory(settings.profile, "profile")


def needs_of(settings: LocalSettings) -> Needs:
    """Return what a pipeline needs of this host: of `up` itself, which its servers get their limits from, and of disks.

    JetStream gives three quarters of what is free; the least that a gateway starts with is 16 MiB for jobs and 128 MiB
    for pictures.
    """
    remedy = "free some, or choose another --data-dir"
    nats = RoomNeed(settings.data_dir / "nats", 192 * _MIB, 1000, "jobs and pictures", remedy)
    redis = RoomNeed(settings.data_dir / "redis", 64 * _MIB, 100, "tokens and results", remedy)
    rooms = [room for room, url in ((nats, settings.nats_url), (redis, settings.redis_url)) if url is None]
    return Needs(BASE_FILES + _FILES_PER_SERVICE * len(settings.services), tuple(rooms))


def check_port(host: str, port: int) -> None:
    """Raise `ConfigurationError` where nobody can listen at this moment."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
                probe.listen()
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, or 0 for a free one",
            field="port",
        ) from error


def make_directory(path: Path, field: str) -> None:
    """Make a directory that can be written to; raises `ConfigurationError` naming the flag."""
    flag = f"--{field.replace('_', '-')}"
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # nats-server's configuration is UTF-8
        raise ConfigurationError(f"{flag} {printable(path)}: the path is not UTF-8", field=field) from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(f"{flag}: cannot write {printable(path)}: {error.strerror}", field=field) from error
