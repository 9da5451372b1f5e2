"""What `probe` measured on one host, as the file that `plan` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.wrong_value import WrongValue
from broker_pipeline.planning.devices import Device, gpu, whole_processor
from broker_pipeline.planning.measured import LayerTimes, measured_device
from broker_pipeline.tools.machine import MachineFacts
from trials.hosts.named_model import read_named_model

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ProbedStep(_Record, frozen=True, kw_only=True):
    """One kind of step, for each layer of the block that was timed."""

    num_sessions: Count
    num_tokens: Count
    layer_s: Positive


class ProbedDevice(_Record, frozen=True, kw_only=True):
    """One device: its memory, and steps of a block of the model on it."""

    device: str
    """As workers are told: `cpu`, `cuda:0`."""
    name: str
    total_bytes: Count
    free_bytes: Count
    decode: Annotated[tuple[ProbedStep, ...], Meta(min_length=1)]
    prefill: Annotated[tuple[ProbedStep, ...], Meta(min_length=1)]
    picture_s: Positive
    """Of the tower, for a picture of a batch."""
    num_visual_tokens: Count
    """Of a picture."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device != "cpu"


class ProbedLink(_Record, frozen=True, kw_only=True):
    """What a small message and large ones take to another host."""

    peer: str
    nats_trip_s: Positive
    """There by a NATS server of the peer's, and an answer."""
    nats_bytes_per_s: Positive
    edge_trip_s: Positive
    """There by an edge, and an answer."""
    edge_bytes_per_s: Positive


class HostProbe(_Record, frozen=True, kw_only=True):
    """A host, measured."""

    format_version: Annotated[int, Meta(ge=1, le=1)] = 1
    host: str
    shape: str
    """Of the model whose layers were timed."""
    num_layers: Count
    """Of the block."""
    context: Count
    """Tokens of a session in decode steps, and of a prompt."""
    memory_total_bytes: Count
    memory_free_bytes: Count
    machine: MachineFacts
    devices: Annotated[tuple[ProbedDevice, ...], Meta(min_length=1)]
    links: tuple[ProbedLink, ...] = ()

    def planned_devices(self) -> tuple[Device, ...]:
        """Return the devices as the planner knows them, with rates that give the times that were measured."""
        return tuple(self._planned(each) for each in self.devices)

    def _planned(self, probed: ProbedDevice) -> Device:
        if probed.is_gpu:
            base = gpu(probed.name, probed.free_bytes)
        else:
            base = whole_processor(self.machine.num_cores, probed.free_bytes)
        decode, prefill = probed.decode[-1], probed.prefill[-1]
        times = LayerTimes(
            num_sessions=decode.num_sessions,
            context=self.context,
            decode_s=decode.layer_s,
            num_prompt_tokens=prefill.num_tokens,
            prefill_s=prefill.layer_s,
            num_visual_tokens=probed.num_visual_tokens,
            tower_s=probed.picture_s,
        )
        return measured_device(base, read_named_model(self.shape), times)


def read_probe(path: Path) -> HostProbe:
    """Read a file of `probe`; raises `ConfigurationError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=HostProbe)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}", field="hosts") from error
    except msgspec.ValidationError as error:
        wrong = WrongValue.of(error)
        raise ConfigurationError(
            f"{path} is no file of this version's probe: {wrong.path or 'it'}: {wrong.reason}", field="hosts"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no file of probe: {error}", field="hosts") from error


def write_probe(path: Path, probe: HostProbe) -> None:
    """Write a file for `plan`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(probe_text(probe) + "\n")
    part.replace(path)


def probe_text(probe: HostProbe) -> str:
    """Return what such a file holds."""
    return msgspec.json.format(msgspec.json.encode(probe), indent=2).decode()
