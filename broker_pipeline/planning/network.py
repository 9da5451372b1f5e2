"""Hosts and the links between them: what a payload and a message cost where workers are apart.

messages    sender ──► broker ──► receiver        metadata of every envelope, tokens, requests
payloads    sender ─────────────► receiver        hidden states and visual rows, by an edge
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from broker_pipeline.planning.devices import EDGES, TCP_END_BYTES_PER_S, Edge

_LOCAL_S = EDGES["nats"].latency_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What two hosts have between them, in each direction."""

    latency_s: float
    """One way."""
    bytes_per_s: float
    """What payloads get of it, without headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How hosts, which are numbered, are joined."""

    names: tuple[str, ...]
    num_cores: tuple[int, ...]
    """Of each host."""
    default: Link
    """Between hosts that `links` says nothing of."""
    links: Mapping[tuple[int, int], Link]
    """By two hosts, the smaller number first."""
    ports: Mapping[int, float]
    """Bytes per second of hosts' own ports, all links together and each direction by itself; no entry is no bound."""
    broker: int = 0
    gateway: int = 0
    """Where the gateway and the conductor run."""
    is_by_broker: bool = False
    """Whether payloads take NATS too, since workers do not reach one another."""

    def link(self, one: int, other: int) -> Link:
        """Return what joins two different hosts."""
        return self.links.get((min(one, other), max(one, other)), self.default)

    def message_s(self, sender: int, receiver: int) -> float:
        """Return the seconds of a small message, which goes by the broker."""
        return _LOCAL_S + sum(self._latency_s(one, self.broker) for one in (sender, receiver))

    def around_s(self, first: int, last: int) -> float:
        """Return what distance adds to the way from the conductor to a first stage, and from a last one back."""
        return self.message_s(self.gateway, first) + self.message_s(last, self.gateway) - 2 * _LOCAL_S

    def edge(self, sender: int, receiver: int) -> Edge:
        """Return how hidden states and visual rows get from one host to another; a message says that they come."""
        message_s = self.message_s(sender, receiver)
        if sender == receiver:
            local = EDGES["shm"]
            return Edge(
                latency_s=max(local.latency_s, message_s),
                bytes_per_s=local.bytes_per_s,
                total_bytes_per_s=local.total_bytes_per_s,
            )
        way = self.way(sender, receiver)
        rate = min(TCP_END_BYTES_PER_S, *(self.link(*pair).bytes_per_s for pair in way)) if way else float("inf")
        direct_s = EDGES["tcp"].latency_s + sum(self.link(*pair).latency_s for pair in way)
        return Edge(latency_s=max(direct_s, message_s), bytes_per_s=rate, total_bytes_per_s=float("inf"))

    def way(self, sender: int, receiver: int) -> list[tuple[int, int]]:
        """Return the hops of a payload, each from one host to another; none within a host."""
        if self.is_by_broker and sender != receiver:
            return self.message_way(sender, receiver)
        return _hops(sender, receiver)

    def message_way(self, sender: int, receiver: int) -> list[tuple[int, int]]:
        """Return the hops of a message."""
        return _hops(sender, self.broker, receiver)

    def _latency_s(self, one: int, other: int) -> float:
        return 0.0 if one == other else self.link(one, other).latency_s


def _hops(*hosts: int) -> list[tuple[int, int]]:
    return [(one, other) for one, other in pairwise(hosts) if one != other]
