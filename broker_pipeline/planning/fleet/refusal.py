"""Why a model does not fit on some hosts, in bytes, and how many more devices would do."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.devices import Device
from broker_pipeline.planning.fleet.fleet import Fleet
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.site import layers_in, room_bytes
from broker_pipeline.planning.workload import Workload

_GB = 1e9
_MOST_MORE = 256


def fleet_does_not_fit(model: ModelSizes, fleet: Fleet) -> ConfigurationError:
    """Return the error that says how many bytes are missing, and how many more devices like the largest would do."""
    slots = fleet.slots(fleet.hosts_with_devices)
    devices = [fleet.device(slot) for slot in slots]
    largest = max(slots, key=lambda slot: fleet.device(slot).memory_bytes)
    needed = needed_bytes(model)
    rooms = [room_bytes(model, fleet.device(slot), has_vision=slot == largest) for slot in slots]
    room = sum(max(0.0, each) for each in rooms)
    missing = (
        f"{(needed - room) / _GB:.1f} GB are missing"
        if needed > room
        else f"no cut fits: a layer has {model.layer_bytes / _GB:.1f} GB, embedding and head "
        f"{model.embed_weights * model.dtype_bytes / _GB:.1f} GB each"
    )
    device = fleet.device(largest)
    like = f"{device.name} with {device.memory_bytes / _GB:.1f} GB"
    more = num_more(model, devices, device)
    hint = f"{more} more like the {like} of {fleet.network.names[largest.host]} would do"
    if more is None:
        hint = f"no number of devices like the {like} would do"
    return ConfigurationError(
        f"{model.name} does not fit: with one caption's KV layers, embedding and head need {needed / _GB:.1f} GB, and "
        f"beside vision the {len(devices)} device{'s' * (len(devices) > 1)} have room for {room / _GB:.1f} GB of it: "
        f"{missing}; {hint}",
        field="hosts",
    )


def needed_bytes(model: ModelSizes) -> float:
    """Return the bytes of the weights of all stages and of one session's KV."""
    ends = (2 - model.is_tied) * model.embed_weights * model.dtype_bytes
    kv = Workload().num_session_tokens * model.kv_bytes
    return ends + model.num_layers * (model.layer_bytes + kv)


def num_more(model: ModelSizes, devices: Sequence[Device], like: Device) -> int | None:
    """Return how many more devices make one copy fit; None where none would."""
    for count in range(1, _MOST_MORE):
        if _fits(model, sorted([*devices, *[like] * count], key=lambda each: -each.memory_bytes)):
            return count
    return None


def _fits(model: ModelSizes, devices: Sequence[Device]) -> bool:
    """Whether one copy fits, the tower with its first stage; the last stage is on whichever has room for the head."""
    rooms = [room_bytes(model, device, has_vision=not index) for index, device in enumerate(devices)]
    last = max(range(len(rooms)), key=lambda index: (index > 0, rooms[index]))
    layers = [
        layers_in(model, Workload(), room, 1, is_first=not index, is_last=index == last)
        for index, room in enumerate(rooms)
    ]
    has_both = layers[0] > 0 and layers[last] > 0 and model.num_layers > (last > 0)  # each stage has a layer of its own
    return has_both and sum(max(0, each) for each in layers) >= model.num_layers
