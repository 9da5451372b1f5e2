"""Why a layout cannot be, in bytes, and what could be instead."""

from __future__ import annotations

from dataclasses import replace

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.devices import Device
from broker_pipeline.planning.layout import LayoutRequest
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.site import Site, layers_in, room_bytes
from broker_pipeline.planning.workload import Workload

_GB = 1e9
_LEAST_TOLD = 0.05 * _GB
"""What is missing is said to a tenth of a GB."""


def check_request(model: ModelSizes, request: LayoutRequest) -> None:
    """Raise `ConfigurationError` where there are fewer layers than stages."""
    if request.num_stages is not None and request.num_stages > model.num_layers:
        raise ConfigurationError(
            f"--layout {request}: {model.name} has {model.num_layers} layers and cannot be cut into "
            f"{request.num_stages} stages",
            field="layout",
        )


def does_not_fit(model: ModelSizes, site: Site, request: LayoutRequest) -> ConfigurationError:
    """Return the error that says how many bytes are missing, and how many devices like these would do."""
    num_stages = request.num_stages or (1 if request.num_copies else len(site.devices))
    num_workers = num_stages * (request.num_copies or 1)
    num_sharers = -(-num_workers // len(site.devices))
    device = min(site.devices, key=lambda each: each.memory_bytes)
    needed = _needed_memory(model, device, num_sharers * _stage_bytes(model, num_stages))
    fits = _fewest_stages(model, site)
    hint = (
        "no number of stages would do" if fits is None else f"a copy fits in {fits} stages, each on a device like these"
    )
    return ConfigurationError(
        f"--layout {request} does not fit: {model.name} needs {needed / _GB:.1f} GB on each device, which has "
        f"{device.memory_bytes / _GB:.1f} GB: {(needed - device.memory_bytes) / _GB:.1f} GB are missing; {hint}",
        field="layout",
    )


def _needed_memory(model: ModelSizes, device: Device, stage_bytes: float) -> float:
    """Return the memory of a device like this one that has room for so many bytes: what it leaves grows with it."""
    needed = float(device.memory_bytes)
    while (missing := stage_bytes - room_bytes(model, replace(device, memory_bytes=int(needed)), has_vision=True)) > 0:
        needed += max(missing, _LEAST_TOLD)
    return needed


def _stage_bytes(model: ModelSizes, num_stages: int) -> float:
    """Return the bytes of the weights of the fullest of so many stages, and one session's KV."""
    num_layers = -(-model.num_layers // num_stages)
    ends = model.embed_weights * model.dtype_bytes * (1 if num_stages > 1 or model.is_tied else 2)
    return ends + num_layers * (model.layer_bytes + Workload().num_session_tokens * model.kv_bytes)


def _fewest_stages(model: ModelSizes, site: Site) -> int | None:
    """Return the fewest stages that fit, each on a device like the smallest one there is."""
    rooms = [room_bytes(model, device, has_vision=True) for device in site.devices]
    for num_stages in range(1, model.num_layers + 1):
        ends = {"is_first": True, "is_last": num_stages == 1}
        if num_stages * layers_in(model, Workload(), min(rooms), 1, **ends) >= model.num_layers:
            return num_stages
    return None
