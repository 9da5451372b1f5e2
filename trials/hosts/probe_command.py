"""`broker-pipeline probe`: what a host can do, measured."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from broker_pipeline.config import PathType
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.logs import log_errors_only
from broker_pipeline.planning.workload import Workload
from broker_pipeline.process.end_signals import end_signals
from broker_pipeline.process.terminal import make_console
from broker_pipeline.security.roles import Host
from broker_pipeline.tools.local.gpus.devices import cuda_devices
from broker_pipeline.tools.machine import MachineFacts
from export.synthetic.shapes import SHAPE_NAMES
from trials.bench.options import POSITIVE, say
from trials.hosts.link_probe import listening, measure_link, parse_peer
from trials.hosts.probe_file import HostProbe, ProbedLink, probe_text, write_probe
from trials.hosts.probe_view import print_probe

_STANDARD_OUTPUT = Path("-")
_PORTS = click.IntRange(0, 65535)


class ProbeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to measure."""

    name: Host
    shape: str
    num_layers: int
    devices: tuple[str, ...]
    picture_side: int
    peers: tuple[str, ...]


@click.command(name="probe")
@click.option("--name", default=socket.gethostname, help="What the host file calls this host.  [default: its own name]")
@click.option("--shape", type=click.Choice(SHAPE_NAMES), default="8B", show_default=True, help="Sizes of the model.")
@click.option("--layers", "num_layers", default=2, show_default=True, type=POSITIVE, help="Of the block that is timed.")
@click.option(
    "--device", "devices", multiple=True, metavar="DEVICE", help="cpu or cuda:N.  [default: all GPUs, else cpu]"
)
@click.option("--picture-side", default=448, show_default=True, type=POSITIVE, help="Pixels of the tower's pictures.")
@click.option(
    "--peer", "peers", multiple=True, metavar="NAME=URL", help="Another host, as `probe --listen` there says."
)
@click.option("--listen", metavar="ADDRESS", help="Answer other hosts at this address of this host, until Ctrl-C.")
@click.option("--port", default=7399, show_default=True, type=_PORTS, help="With --listen; 0 picks a free one.")
@click.option(
    "--out",
    type=PathType(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="File for `plan --hosts`; - prints it in place of the table.",
)
def command(listen: str | None, port: int, out: Path | None, **options: Any) -> None:
    """Time what this host does for a pipeline: layers of a model, its tower, memory, and links to other hosts.

    Weights are random; a block of a few layers stands for the whole model. Links are timed to peers that listen: hosts
    of stages and vision workers, and the broker's. A listener has a NATS server of its own meanwhile, on --port, and
    edges on ports 7400 to 7415; others need the token that it prints.

    \b
    Examples:
      gpu-2$ broker-pipeline probe --listen 10.0.0.3
      gpu-1$ broker-pipeline probe --name gpu-1 --shape 8B --peer gpu-2=nats://TOKEN@10.0.0.3:7399 --out gpu-1.json
      front$ broker-pipeline plan --hosts hosts.toml --model 8B
    """
    log_errors_only()
    if listen is None:
        probe = _probe(_settings(options))
        if out == _STANDARD_OUTPUT:
            click.echo(probe_text(probe))
            return
        if out is not None:
            write_probe(out, probe)
        print_probe(make_console(), probe)
        return
    if options["peers"] or out is not None:
        raise ConfigurationError("--listen only answers other hosts: leave --peer and --out out", field="listen")
    uvloop.run(_listen(options["name"], listen, port))


def _settings(options: dict[str, Any]) -> ProbeSettings:
    try:
        return msgspec.convert(options | {"name": options["name"].lower()}, ProbeSettings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"--name {options['name']!r}: hosts' names have letters, digits and hyphens, such as gpu-1", field="name"
        ) from error


async def _listen(name: str, host: str, port: int) -> None:
    ended = asyncio.Event()
    for number in end_signals():
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with listening(host, port) as url:
        click.echo(f"on other hosts:  broker-pipeline probe --peer {name.lower()}={url}")
        await ended.wait()


def _probe(settings: ProbeSettings) -> HostProbe:
    """Time links, and then devices."""
    from trials.hosts import device_probe  # noqa: PLC0415 - torch, which a listener need not have

    machine, peers = MachineFacts.read(), [parse_peer(peer) for peer in settings.peers]
    work, memory = Workload(), device_probe.processor_memory()
    kind = device_probe.DeviceProbe(
        shape=settings.shape,
        num_layers=min(
            settings.num_layers, device_probe.most_layers(settings.shape) - 1
        ),  # all of them would have the head
        context=round(work.mean_context),
        picture_side=settings.picture_side,
    )
    return HostProbe(
        host=settings.name,
        shape=settings.shape,
        num_layers=kind.num_layers,
        context=kind.context,
        memory_total_bytes=memory.total_bytes,
        memory_free_bytes=memory.free_bytes,
        machine=machine,
        links=uvloop.run(_links(peers)),
        devices=tuple(kind.measure(device) for device in settings.devices or asyncio.run(_all_devices())),
    )


async def _links(peers: list[tuple[str, str]]) -> tuple[ProbedLink, ...]:
    links = []
    for name, url in peers:
        say(f"timing messages to {name}")
        links.append(await measure_link(name, url))
    return tuple(links)


async def _all_devices() -> tuple[str, ...]:
    gpus = await cuda_devices()
    return tuple(f"cuda:{number}" for number in range(len(gpus))) or ("cpu",)
