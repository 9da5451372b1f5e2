"""Command line options about edges, of whatever starts workers."""

from __future__ import annotations

import click

from broker_pipeline.config import option, refuse_unread
from broker_pipeline.wire.edges.settings import EdgeChoice, EdgeSettings

EDGE_OPTIONS = (
    option(
        "--edges",
        default="auto",
        type=click.Choice(["auto", "nats", "shm", "tcp"]),
        help="How hidden states and visual rows reach other workers: in shared memory on one machine (shm), by a "
        "connection of their own (tcp), auto for the best that works, or over NATS, which remains behind each of them.",
    ),
    option(
        "--edge-host",
        default=None,
        help="Address at which workers of other hosts reach those of this one.  [default: the one from which they "
        "reach NATS]",
    ),
    option(
        "--edge-port",
        default="0",
        help="Port to listen on for other workers, or several: 7400-7415, one for each worker of the host. 0 is any.",
    ),
    option(
        "--edge-tls",
        default="on",
        type=click.Choice(["on", "off"]),
        help="Whether connections between workers are encrypted; the same for all workers.",
    ),
    option(
        "--edge-ring-bytes",
        default=None,
        type=click.IntRange(min=2**16, max=2**36),
        help="Shared memory for each worker that sends to another one.  [default: 256 MiB for a GPU, 64 MiB for a CPU]",
    ),
)
EDGE_NAMES = ("edges", "edge_host", "edge_port", "edge_tls", "edge_ring_bytes")
"""Of the settings that these options give."""


def refuse_unread_edge_options(choice: EdgeChoice) -> None:
    """Raise `ConfigurationError` for options of the command line about edges that `--edges` leaves out."""
    kinds = EdgeSettings(choice).kinds
    if "tcp" not in kinds:
        refuse_unread(
            "edge_host", "edge_port", "edge_tls", why=f"has no effect with --edges {choice}: take tcp or auto"
        )
    if "shm" not in kinds:
        refuse_unread("edge_ring_bytes", why=f"has no effect with --edges {choice}: take shm or auto")
