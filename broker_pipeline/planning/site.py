"""The devices that a pipeline may use, how they are joined, and how much of a model one of them holds."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.messages.edges import Carrier
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.planning.devices import (
    CACHE_BYTES,
    CACHE_SHARE,
    EDGES,
    MEMORY_MARGIN,
    ROW_BUFFER_BYTES,
    ROW_BUFFER_SHARE,
    Device,
    Edge,
)
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.network import Network
from broker_pipeline.planning.workload import Workload, most_step_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What there is to run on. Workers beyond the number of devices share them, round-robin."""

    devices: tuple[Device, ...]
    num_cores: int
    edge: Carrier = "nats"
    """How hidden states and visual rows travel, on one host."""
    hosts: tuple[int, ...] = ()
    """Of each device its host's number, where there are several."""
    network: Network | None = None
    """How these hosts are joined."""

    def index_of(self, worker: int) -> int:
        """Return the index of a worker's device."""
        return worker % len(self.devices)

    def hop(self, sender: int, receiver: int) -> Edge:
        """Return how hidden states get from one device's worker to another's."""
        if self.network is None:
            return EDGES[self.edge]
        return self.network.edge(self.hosts[sender], self.hosts[receiver])

    def link_rate(self, sender: int, receiver: int) -> float:
        """Return the bytes per second between two devices' hosts; no bound within a host."""
        if self.network is None or self.hosts[sender] == self.hosts[receiver]:
            return float("inf")
        return self.network.edge(self.hosts[sender], self.hosts[receiver]).bytes_per_s

    def around_s(self, first: int, last: int) -> float:
        """Return what distance from the conductor adds to a microbatch, with its first and last stage on these."""
        return self.network.around_s(self.hosts[first], self.hosts[last]) if self.network is not None else 0.0


def room_bytes(model: ModelSizes, device: Device, *, has_vision: bool) -> float:
    """Return what a device has for layers, embedding, head and KV of one stage; below 0 where there is no room."""
    if not device.is_gpu:
        return device.memory_bytes - has_vision * model.tower_bytes
    room = device.memory_bytes * (1 - MEMORY_MARGIN) - model.workspace_bytes(most_step_tokens(device.memory_bytes))
    rows = min(ROW_BUFFER_BYTES, ROW_BUFFER_SHARE * device.memory_bytes)
    kept = min(CACHE_BYTES, CACHE_SHARE * device.memory_bytes)
    return room - has_vision * (model.tower_bytes + model.tower_workspace_bytes + rows + kept)


def sessions_in(model: ModelSizes, workload: Workload, room: float, blocks: BlockRange) -> int:
    """Return how many sessions' KV fits into `room` bytes beside the weights of a stage; 0 where nothing fits."""
    left = room - weight_bytes(model, blocks)
    return max(0, int(left // (workload.num_session_tokens * len(blocks) * model.kv_bytes)))


def weight_bytes(model: ModelSizes, blocks: BlockRange) -> int:
    """Return the bytes of a stage's weights, embedding and head included."""
    return _end_bytes(model, blocks.start == 0, blocks.stop == model.num_layers) + len(blocks) * model.layer_bytes


def layers_in(
    model: ModelSizes, workload: Workload, room: float, num_sessions: int, *, is_first: bool, is_last: bool
) -> int:
    """Return how many layers fit into `room` bytes together with the KV of so many sessions; 0 or less for none."""
    each = model.layer_bytes + num_sessions * workload.num_session_tokens * model.kv_bytes
    return int((room - _end_bytes(model, is_first, is_last)) // each)


def _end_bytes(model: ModelSizes, is_first: bool, is_last: bool) -> int:
    """Return the bytes of embedding and head; a tied head is a copy of its own where it is not with the embedding."""
    num_copies = is_first + is_last - (model.is_tied and is_first and is_last)
    return num_copies * model.embed_weights * model.dtype_bytes
