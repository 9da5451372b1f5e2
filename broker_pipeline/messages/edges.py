"""How workers agree on an edge, and how a message says that its payload takes one."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.messages.base import Subject, WireMessage, WireReport

EdgeKind = Literal["shm", "tcp"]
Carrier = Literal["shm", "tcp", "nats"]
"""What a payload takes: an edge, or NATS with its metadata."""
Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CertificateHash = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")]
"""SHA-256."""
_Count = Annotated[int, Meta(ge=0, lt=2**62)]


class EdgeRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the payload of a message is: it came, or comes, over an edge, and only the metadata over NATS."""

    edge: Token
    """The receiver's name of the edge, which it told the sender when that connected."""
    number: _Count
    """Counts the payloads of the edge; no two have the same."""
    num_bytes: Annotated[int, Meta(ge=1, le=2**30)]
    offset: _Count = 0
    """Where in the ring its record begins, for an edge that has a ring."""


class ShmOffer(WireReport, frozen=True, kw_only=True):
    """A way in for whoever is on the same machine."""

    path: Annotated[str, Meta(min_length=1, max_length=107)]
    """Of a unix socket."""
    token: Token
    """Is good for one connection."""


class TcpOffer(WireReport, frozen=True, kw_only=True):
    """A way in over the network."""

    addresses: Annotated[tuple[str, ...], Meta(max_length=16)]
    """Each `host:port`, the likeliest first."""
    token: Token
    """Is good for one connection."""
    certificate: CertificateHash = ""
    """Of the certificate that the listener shows; empty where the edge is not encrypted."""


class EdgeAsk(WireMessage, frozen=True, kw_only=True):
    """A worker that has payloads for another one asks for a way there other than NATS."""

    kinds: Annotated[tuple[str, ...], Meta(max_length=8)]
    """What the asking side can use."""
    root: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.$-]{0,255}$")] = ""
    """Of the asking side's subjects, so that whoever misses it knows whom."""
    certificate: CertificateHash = ""
    """Of the certificate that the asking side will show; empty where it has none."""


class PeerLost(WireMessage, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A worker's edge to or from another one has ended: that one may have died."""

    root: Subject
    """Of that one's subjects."""


class EdgeOffer(WireMessage, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The ways in. None where the worker has no such edge, or has given out as many as it may."""

    shm: ShmOffer | None = None
    tcp: TcpOffer | None = None
