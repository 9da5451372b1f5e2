"""Which device a worker computes on, and in which dtype, by the names that people give."""

from __future__ import annotations

import torch

from broker_pipeline.errors import ConfigurationError

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_device(name: str) -> torch.device:
    """Return the device called `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigurationError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {name!r}; use auto, cpu or cuda:N", field="device") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ConfigurationError(f"device {name!r} is not supported; use auto, cpu or cuda:N", field="device")
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= num_devices:
        raise ConfigurationError(
            f"device {name!r} is not here: torch {torch.__version__} sees {num_devices} CUDA device(s)", field="device"
        )
    return torch.device("cuda", index)


def choose_dtype(name: str, stored: torch.dtype) -> torch.dtype:
    """Return the dtype called `bfloat16` or `float32`; `auto` is that of the artifact."""
    return stored if name == "auto" else _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name as announced and as it stands in tensor tables."""
    return str(dtype).removeprefix("torch.")
