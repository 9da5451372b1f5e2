"""The file that describes hosts, and what is wrong with one: which line, and what was most likely meant.

[network]                       what joins hosts that no [[links]] names
mbit_s = 1000
latency_ms = 0.5

[[hosts]]
name = "gpu-1"
address = "10.0.0.2"
probe = "gpu-1.json"            measured there; or the devices by hand:
devices = [{ name = "NVIDIA L40S", memory_gb = 48 }]

[[links]]
between = ["gpu-1", "gpu-2"]
mbit_s = 10000
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.wrong_value import WrongValue
from broker_pipeline.security.roles import Host, is_host_address

Positive = Annotated[float, Meta(gt=0)]
_AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\s\"'$#\\]*$")]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class DeviceEntry(_Table, frozen=True, kw_only=True):
    """A device by hand. The times are of one layer of `shape`: without them rates are guessed by the name."""

    name: str
    memory_gb: Positive
    shape: str | None = None
    decode_layer_ms: Positive | None = None
    decode_sessions: Annotated[int, Meta(ge=1)] = 64
    prefill_layer_ms: Positive | None = None
    prefill_tokens: Annotated[int, Meta(ge=1)] = 2400
    picture_ms: Positive | None = None

    def __post_init__(self) -> None:
        timed = [self.shape, self.decode_layer_ms, self.prefill_layer_ms]
        if any(each is None for each in timed) and any(each is not None for each in [*timed, self.picture_ms]):
            raise ValueError("times take all of `shape`, `decode_layer_ms` and `prefill_layer_ms`")


class HostEntry(_Table, frozen=True, kw_only=True):
    """One host."""

    name: Host
    address: str
    cores: Annotated[int, Meta(ge=1)] | None = None
    """None is as the probe found, or 8."""
    roles: tuple[Literal["broker", "gateway"], ...] = ()
    """What is to run here; the first host has what no host asks for."""
    probe: str | None = None
    """A file of `probe`, from where the host file is."""
    devices: tuple[DeviceEntry, ...] = ()
    port_mbit_s: Positive | None = None
    """Of the host's own network port, all links together."""
    artifacts: _AbsolutePath = "/srv/broker-pipeline/artifacts"
    secrets: _AbsolutePath = "/srv/broker-pipeline/secrets"
    server_secrets: _AbsolutePath = "/srv/broker-pipeline/servers"
    data: _AbsolutePath = "/srv/broker-pipeline/data"

    def __post_init__(self) -> None:
        if not is_host_address(self.address):
            raise ValueError(f"address {self.address!r} is neither a host's name nor an IP address")


class LinkEntry(_Table, frozen=True, kw_only=True):
    """What two hosts have between them; it stands in place of what probes measured."""

    between: tuple[str, str]
    mbit_s: Positive
    latency_ms: Annotated[float, Meta(ge=0)] = 0.5


class NetworkEntry(_Table, frozen=True, kw_only=True):
    """What joins hosts of which nothing else is known."""

    mbit_s: Positive = 1000
    latency_ms: Annotated[float, Meta(ge=0)] = 0.5
    payloads: Literal["direct", "broker"] = "direct"
    """Whether workers reach one another, or all payloads take NATS."""


class HostsFile(_Table, frozen=True, kw_only=True):
    """The whole file."""

    hosts: Annotated[tuple[HostEntry, ...], Meta(min_length=1)]
    links: tuple[LinkEntry, ...] = ()
    network: NetworkEntry = NetworkEntry()


_HEADER = re.compile(r"^\s*\[\[?\s*([\w-]+)\s*\]")
_TABLES: dict[str, type[msgspec.Struct]] = {
    "hosts": HostEntry,
    "devices": DeviceEntry,
    "links": LinkEntry,
    "network": NetworkEntry,
}


def read_hosts_file(path: Path) -> HostsFile:
    """Read a host file; raises `ConfigurationError` that names the line."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}", field="hosts") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {str(error)[:1].lower()}{str(error)[1:]}", field="hosts") from error
    _refuse_unknown_keys(path, text, content, HostsFile, "")
    try:
        return msgspec.convert(content, HostsFile)
    except msgspec.ValidationError as error:
        wrong = WrongValue.of(error)
        where = f" line {line_of(text, wrong.path)}" if wrong.path else ""
        reason = wrong.reason.replace(" | null", "")  # which TOML does not have
        raise ConfigurationError(f"{path}{where}: {wrong.path or 'the file'}: {reason}", field="hosts") from error


def _refuse_unknown_keys(path: Path, text: str, content: Any, kind: type[msgspec.Struct], at: str) -> None:
    """Name a key that nobody reads, and what was most likely meant."""
    known = kind.__struct_fields__
    for key, value in content.items():
        here = f"{at}.{key}" if at else key
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigurationError(f"{path} line {line_of(text, here)}: unknown key {key}; {hint}", field="hosts")
        for index, table in _tables(value):
            _refuse_unknown_keys(path, text, table, _TABLES.get(key, kind), f"{here}{index}")


def _tables(value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield "", value
    elif isinstance(value, list):
        yield from ((f"[{index}]", each) for index, each in enumerate(value) if isinstance(each, dict))


def line_of(text: str, where: str) -> int:
    """Return the line of `hosts[1].devices[0].name`: the first of that key in that table, else the table's own."""
    table, *keys = re.findall(r"([A-Za-z_-]+)(?:\[(\d+)\])?", where) or [("", "")]
    lines = text.splitlines()
    heads = [(number, match[1]) for number, line in enumerate(lines) if (match := _HEADER.match(line))]
    starts = [number for number, name in heads if name == table[0]]
    start = starts[int(table[1] or 0)] if len(starts) > int(table[1] or 0) else 0
    stop = next((number for number, _ in heads if number > start), len(lines))
    key = keys[-1][0] if keys else table[0]
    assignment = re.compile(rf"(?:^|[{{,\s\[]){re.escape(key)}\s*(?:=|\])")
    return next((number + 1 for number in range(start, stop) if assignment.search(lines[number])), start + 1)
