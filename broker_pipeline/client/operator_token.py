"""The token that lets whoever runs `broker-pipeline up` operate it, and where commands find it.

    DATA_DIR/operator.token                                 made anew at every start, for its owner's eyes only
    STATE_HOME/broker-pipeline/gateways/127.0.0.1:8080      link to it, for commands that know the gateway's URL

A link is there while its gateway runs. What else listens at such an address later is sent nothing that is still good.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.process.private_files import write_private

FILE_NAME = "operator.token"
REDIS_URL_FILE = "redis.url"
"""In a data directory: where its own Redis listens while it runs."""


def state_home() -> Path:
    """Return the directory for what is kept between runs; raises `ConfigurationError` where there is no home."""
    state = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(state) if state else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ConfigurationError("no home directory: say where with --data-dir", field="data_dir") from error
    return base / "broker-pipeline"


def make_token(data_dir: Path) -> Path:
    """Write a new token into a data directory and return its file."""
    path = data_dir.absolute() / FILE_NAME
    write_private(path, secrets.token_urlsafe(32))
    return path


@contextmanager
def noted_gateways(urls: Sequence[str], token: Path) -> Iterator[None]:
    """Have commands find the token of the gateways at these URLs while the context is open."""
    links = [_link(url) for url in urls]
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        link.unlink(missing_ok=True)
        link.symlink_to(token)
    try:
        yield
    finally:
        for link in links:
            with contextlib.suppress(OSError):
                if link.readlink() == token:  # else it is another's by now
                    link.unlink()


def token_for(url: str) -> str | None:
    """Return the operator's token of a gateway of this machine that `up` runs, None where it is another's."""
    with contextlib.suppress(OSError, ConfigurationError, ValueError):
        return _link(url).read_text().strip() or None
    return None


def _link(url: str) -> Path:
    parts = urlsplit(url)
    return state_home() / "gateways" / f"{_address(parts.hostname or '')}:{parts.port or 80}"


def _address(host: str) -> str:
    """Return one name for all names of this machine as seen from itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "127.0.0.1" if host == "localhost" else host
    return "127.0.0.1" if address.is_loopback or address.is_unspecified else str(address)
