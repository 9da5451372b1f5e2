"""Hosts as the planner takes them, from a host file and its probes; what contradicts itself is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.devices import EDGES, Device, gpu, is_known_gpu, whole_processor
from broker_pipeline.planning.fleet.fleet import Fleet
from broker_pipeline.planning.measured import LayerTimes, measured_device
from broker_pipeline.planning.network import Link, Network
from broker_pipeline.planning.workload import Workload
from trials.hosts.hosts_file import DeviceEntry, HostEntry, HostsFile, LinkEntry, read_hosts_file
from trials.hosts.named_model import read_named_model
from trials.hosts.probe_file import HostProbe, ProbedLink, read_probe

GOODPUT = 0.94
"""Of a wire's bits, what is left for bytes of payloads: headers at 1,500 bytes a packet."""
_DEFAULT_CORES = 8
_MOST_APART = 3.0
"""How many times one probe of a link may say what the other one says."""
_GB, _MBIT = 1e9, 1e6 / 8


@dataclass(frozen=True, slots=True)
class DescribedHosts:
    """A host file as it was written, and the same for the planner."""

    file: HostsFile
    fleet: Fleet
    names: tuple[tuple[str, ...], ...]
    """Of each host its devices, as workers are told: `cuda:0`, `cpu`."""


def read_hosts(path: Path) -> DescribedHosts:
    """Read a host file and its probes; raises `ConfigurationError`."""
    file = read_hosts_file(path)
    _check_names(path, file)
    probes = [_probe_of(path, host) for host in file.hosts]
    _check_devices(path, file)
    devices = [_devices(host, probe) for host, probe in zip(file.hosts, probes, strict=True)]
    if not any(devices):
        raise _wrong(path, "no host has a device")
    names = tuple(
        tuple(each.device for each in probe.devices) if probe else _names(known)
        for probe, known in zip(probes, devices, strict=True)
    )
    fleet = Fleet(devices=tuple(devices), network=_network(path, file, probes))
    return DescribedHosts(file, fleet, names)


def _check_names(path: Path, file: HostsFile) -> None:
    for what in ("name", "address"):
        value, count = Counter(getattr(host, what) for host in file.hosts).most_common(1)[0]
        if count > 1:
            raise _wrong(path, f"{count} hosts have the {what} {value}: each needs one of its own")
    for role in ("broker", "gateway"):
        named = [host.name for host in file.hosts if role in host.roles]
        if len(named) > 1:
            raise _wrong(path, f"{' and '.join(named)} both have the role {role}: leave it to one of them")
    for host in file.hosts:
        if host.probe is not None and host.devices:
            raise _wrong(path, f"host {host.name} has both a probe and devices: leave one of them out")
        if host.probe is None and not host.devices and not host.roles:
            raise _wrong(
                path,
                f'host {host.name} has no device and no role: give it probe = "FILE", devices = [{{ name = …, '
                'memory_gb = … }], or roles = ["broker"] or ["gateway"]',
            )


def _check_devices(path: Path, file: HostsFile) -> None:
    """Refuse a name that was mistyped: it would be planned as a slow GPU."""
    for host in file.hosts:
        for entry in host.devices:
            if not (entry.decode_layer_ms or entry.name.lower() == "cpu" or is_known_gpu(entry.name)):
                raise _wrong(
                    path,
                    f"host {host.name} has a device called {entry.name!r}, whose rates are not known: correct the name "
                    "(cpu, or as nvidia-smi has it), give its times (shape, decode_layer_ms, prefill_layer_ms), or "
                    "use what `broker-pipeline probe` writes there",
                )


def _probe_of(path: Path, host: HostEntry) -> HostProbe | None:
    if host.probe is None:
        return None
    probe = read_probe(path.parent / host.probe)
    if probe.host != host.name:
        raise _wrong(path, f"{host.probe} was measured on a host called {probe.host}, not on {host.name}")
    return probe


def _devices(host: HostEntry, probe: HostProbe | None) -> tuple[Device, ...]:
    if probe is not None:
        return probe.planned_devices()
    return tuple(_device(entry, host.cores or _DEFAULT_CORES) for entry in host.devices)


def _device(entry: DeviceEntry, num_cores: int) -> Device:
    num_bytes = int(entry.memory_gb * _GB)
    base = whole_processor(num_cores, num_bytes) if entry.name.lower() == "cpu" else gpu(entry.name, num_bytes)
    if entry.shape is None or entry.decode_layer_ms is None or entry.prefill_layer_ms is None:
        return base
    work = Workload()
    times = LayerTimes(
        num_sessions=entry.decode_sessions,
        context=round(work.mean_context),
        decode_s=entry.decode_layer_ms / 1e3,
        num_prompt_tokens=entry.prefill_tokens,
        prefill_s=entry.prefill_layer_ms / 1e3,
        num_visual_tokens=work.num_visual_tokens,
        tower_s=entry.picture_ms and entry.picture_ms / 1e3,
    )
    return measured_device(base, read_named_model(entry.shape), times)


def _names(devices: Sequence[Device]) -> tuple[str, ...]:
    gpus = iter(range(len(devices)))
    return tuple(f"cuda:{next(gpus)}" if device.is_gpu else "cpu" for device in devices)


def _network(path: Path, file: HostsFile, probes: Sequence[HostProbe | None]) -> Network:
    numbers = {host.name: number for number, host in enumerate(file.hosts)}
    ports = {numbers[host.name]: _rate(host.port_mbit_s) for host in file.hosts if host.port_mbit_s}
    is_by_broker = file.network.payloads == "broker"
    links = _probed_links(path, probes, numbers, is_by_broker=is_by_broker)
    links.update(_declared_links(path, file, numbers))
    cores = [_cores(host, probe) for host, probe in zip(file.hosts, probes, strict=True)]
    return Network(
        names=tuple(numbers),
        num_cores=tuple(cores),
        default=Link(latency_s=file.network.latency_ms / 1e3, bytes_per_s=_rate(file.network.mbit_s)),
        links=links,
        ports=ports,
        broker=_host_of("broker", file),
        gateway=_host_of("gateway", file),
        is_by_broker=is_by_broker,
    )


def _cores(host: HostEntry, probe: HostProbe | None) -> int:
    return host.cores or (probe.machine.num_cores if probe else _DEFAULT_CORES)


def _host_of(role: str, file: HostsFile) -> int:
    """Return who has a role: who asks for it, else the host of the other one, else the first."""
    for wanted in (role, "broker", "gateway"):
        for number, host in enumerate(file.hosts):
            if wanted in host.roles:
                return number
    return 0


def _declared_links(path: Path, file: HostsFile, numbers: Mapping[str, int]) -> dict[tuple[int, int], Link]:
    found: dict[tuple[int, int], Link] = {}
    ports = {host.name: host.port_mbit_s for host in file.hosts if host.port_mbit_s}
    for entry in file.links:
        one, other = (_number(path, name, numbers) for name in entry.between)
        if one == other:
            raise _wrong(path, f"a link joins {entry.between[0]} with itself")
        pair = min(one, other), max(one, other)
        link = Link(latency_s=entry.latency_ms / 1e3, bytes_per_s=_rate(entry.mbit_s))
        if found.setdefault(pair, link) != link:
            raise _wrong(path, f"two [[links]] say different things of {_between(entry)}: leave one of them out")
        for name in entry.between:
            if entry.mbit_s > ports.get(name, entry.mbit_s):
                raise _wrong(
                    path,
                    f"the link between {_between(entry)} has {entry.mbit_s:g} Mbit/s, the port of {name} only "
                    f"{ports[name]:g}",
                )
    return found


def _number(path: Path, name: str, numbers: Mapping[str, int]) -> int:
    if name not in numbers:
        raise _wrong(path, f"a link names {name}, and hosts are {', '.join(numbers)}")
    return numbers[name]


def _between(entry: LinkEntry) -> str:
    return " and ".join(entry.between)


def _probed_links(
    path: Path, probes: Sequence[HostProbe | None], numbers: Mapping[str, int], *, is_by_broker: bool
) -> dict[tuple[int, int], Link]:
    """Return what probes say of links; where both ends measured, the slower answer."""
    found: dict[tuple[int, int], Link] = {}
    for number, probe in enumerate(probes):
        for probed in probe.links if probe else ():
            other = numbers.get(probed.peer)
            if other is None or other == number:
                continue
            pair, link = (min(number, other), max(number, other)), _link(probed, is_by_broker=is_by_broker)
            before = found.get(pair, link)
            rates = sorted((before.bytes_per_s, link.bytes_per_s))
            if rates[1] > _MOST_APART * rates[0]:
                names = list(numbers)
                raise _wrong(
                    path,
                    f"the probes of {names[pair[0]]} and {names[pair[1]]} contradict each other: "
                    f"{rates[0] / _MBIT:,.0f} and {rates[1] / _MBIT:,.0f} Mbit/s between them; measure again, or say "
                    "what is true in [[links]]",
                )
            found[pair] = replace(link, bytes_per_s=rates[0], latency_s=max(before.latency_s, link.latency_s))
    return found


def _link(probed: ProbedLink, *, is_by_broker: bool) -> Link:
    """Return a link without what software takes on both ends, which the planner adds."""
    if is_by_broker:
        trip_s, rate, own_s = probed.nats_trip_s, probed.nats_bytes_per_s, EDGES["nats"].latency_s
    else:
        trip_s, rate, own_s = probed.edge_trip_s, probed.edge_bytes_per_s, EDGES["tcp"].latency_s
    return Link(latency_s=max(0.0, trip_s - own_s) / 2, bytes_per_s=rate)


def _rate(mbit_s: float) -> float:
    return GOODPUT * mbit_s * _MBIT


def _wrong(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: {reason}", field="hosts")
