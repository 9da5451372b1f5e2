"""How a worker uses edges, by its settings and its device."""

from __future__ import annotations

from functools import partial

import torch

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.wire.edges.settings import EdgeSettings
from stages.device.page_lock import lock_pages
from stages.worker.settings import ComputeSettings

_RING_BYTES = 64 * 2**20
_GPU_RING_BYTES = 256 * 2**20
"""Room for the hidden states of several large prefills: a GPU gets through them that much faster."""


def edge_settings(
    settings: ComputeSettings, device: torch.device, credentials: Credentials | None = None
) -> EdgeSettings:
    """Return which edges a worker uses; rings are locked into memory where a GPU copies to and from them."""
    is_gpu = device.type == "cuda"
    return EdgeSettings(
        settings.edges,
        settings.edge_ring_bytes or (_GPU_RING_BYTES if is_gpu else _RING_BYTES),
        host=settings.edge_host,
        ports=_ports(settings.edge_port),
        is_encrypted=settings.edge_tls == "on",
        identity=credentials.tls if credentials else None,
        on_ring=partial(lock_pages, device) if is_gpu else None,
    )


def _ports(text: str) -> range:
    """Return the ports of `7400` or `7400-7415`. Raises `ConfigurationError`."""
    first, _, last = text.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[-1] > 65535:
        raise ConfigurationError(f"--edge-port: {text} is no range of ports", field="edge_port")
    return ports
