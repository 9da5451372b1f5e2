"""What `up` looks at before it starts anything: whether it may listen where it shall, and write where it must."""

from __future__ import annotations

import socket
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.terminal import printable

_FOLDERS = ("logs", "run", "nats", "redis")


def check_start(settings: LocalSettings) -> None:
    """Raise `ConfigurationError` where the gateway could not listen now, or a directory cannot be made."""
    check_port(settings.host, settings.port)
    for folder in _FOLDERS:
        make_directory(settings.data_dir / folder, "data_dir")
    if settings.profile is not None:
        make_directory(settings.profile, "profile")


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
