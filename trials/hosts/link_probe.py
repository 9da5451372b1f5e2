"""What a host's links carry: small and large messages to a peer that listens, by NATS and by an edge.

probe --peer b=nats://TOKEN@10.0.0.3:7399      host b: probe --listen 10.0.0.3
  ├─ NATS ──────► a server of its own there ──► answers
  └─ tcp edge ────────────────────────────────► answers
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from broker_pipeline.errors import ConfigurationError, RequestTimeoutError, TransportError
from broker_pipeline.tools.local.place import Place
from broker_pipeline.tools.local.servers import EmbeddedNats
from trials.bench.edges.far_end import SETTINGS, answering
from trials.bench.edges.sample import Sample
from trials.bench.edges.ways import measure_way
from trials.hosts.probe_file import ProbedLink

EDGE_PORTS = range(7400, 7416)
"""As of workers in compose/: what a firewall has to let in."""
_SMALL_BYTES, _LARGE_BYTES = 8 * 1024, 3 * 2**20
_SMALL_TRIPS, _LARGE_TRIPS = 200, 24
_MOST_S = 120.0


def parse_peer(text: str) -> tuple[str, str]:
    """Read `NAME=nats://TOKEN@HOST:PORT`; raises `ConfigurationError`."""
    name, equals, url = text.partition("=")
    if not (name and equals and url.startswith("nats://")):
        raise ConfigurationError(
            f"--peer {text!r} is not NAME=nats://TOKEN@HOST:PORT, as `probe --listen` prints it there", field="peer"
        )
    return name, url


@asynccontextmanager
async def listening(host: str, port: int) -> AsyncIterator[str]:
    """Answer peers while the context is open; yields the URL that they need, with a token made for this once."""
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-probe-") as directory:
        server = EmbeddedNats(Path(directory), place=Place(host), port=port or None)
        server.token = secrets.token_urlsafe(16)
        async with server:
            url = server.url.replace("://", f"://{server.token}@", 1)
            ways = {way: replace(SETTINGS[way], ports=tuple(EDGE_PORTS)) for way in ("nats", "tcp")}
            async with answering(url, ways):
                yield url


async def measure_link(peer: str, url: str) -> ProbedLink:
    """Time messages to a peer; raises `TransportError` where it does not answer."""
    try:
        async with asyncio.timeout(_MOST_S):
            nats, edge = [await _measure_way(way, url) for way in ("nats", "tcp")]
    except TimeoutError:
        raise RequestTimeoutError(
            f"--peer {peer}: no answer within {_MOST_S:g} s: is `probe --listen` running there?"
        ) from None
    except TransportError as error:
        raise type(error)(f"--peer {peer}: {error.message}") from error
    return ProbedLink(
        peer=peer,
        nats_trip_s=nats[0],
        nats_bytes_per_s=nats[1],
        edge_trip_s=edge[0],
        edge_bytes_per_s=edge[1],
    )


async def _measure_way(way: str, url: str) -> tuple[float, float]:
    """Return the seconds of a small message there and an answer, and the bytes per second of large ones."""
    small: Sample = await measure_way(way, url, "", _SMALL_BYTES, _SMALL_TRIPS)
    large: Sample = await measure_way(way, url, "", _LARGE_BYTES, _LARGE_TRIPS)
    return statistics.median(small.trips_s), large.bytes_per_s
