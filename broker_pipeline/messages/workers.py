"""How workers announce themselves, and their signs of life."""

from typing import Literal

import msgspec

from broker_pipeline.messages.base import (
    CONTRACT_VERSION,
    Count,
    Name,
    PositiveCount,
    Seconds,
    Sha256,
    ShareName,
    Subject,
    WireReport,
)
from broker_pipeline.pictures.rule import PictureRule

PROCESSOR_PREFIX = "cpu-"
"""What `WorkerRecord.device_id` begins with where a processor computes, not a GPU."""
Role = Literal["stage", "vision", "conductor", "gateway"]
COMPUTING_ROLES = frozenset({"stage", "vision"})
"""Of those that conductors use, and operators drain."""


class BlockRange(WireReport, frozen=True, kw_only=True):
    """Decoder layers `[start, stop)`."""

    start: Count
    stop: PositiveCount

    def __len__(self) -> int:
        return self.stop - self.start


class CertificateRecord(WireReport, frozen=True, kw_only=True):
    """The certificate that a process shows."""

    host: str
    fingerprint: Sha256
    ends_at: Seconds
    """When it is good no more, in seconds since 1970."""


class WorkerRecord(WireReport, frozen=True, kw_only=True):
    """How a worker announces itself. `instance` changes with every start, so that a restart is seen."""

    worker: Name
    instance: Name
    role: Role
    pipeline: Name
    subject: Subject
    """Root of the subjects that this instance listens on (see `subjects`)."""
    host: str = ""
    pid: Count = 0
    version: str = ""
    contract: int = CONTRACT_VERSION
    fingerprint: str = ""
    device: str = ""
    dtype: str = ""
    state: Literal["ready", "draining"] = "ready"
    started_at: Seconds = 0.0
    pictures: PictureRule | None = None
    """Which pictures a vision worker decodes."""
    device_id: str = ""
    """Names the very GPU or processor, whatever hosts are called: workers with the same one share it."""
    device_slots: PositiveCount = 1
    """Workers that the device computes for at the same time without one slowing the other: 1 on a GPU."""
    answers_hellos: bool = False
    """Whether a conductor is gone when nobody listens where it would answer; earlier releases have none who does."""
    certificate: CertificateRecord | None = None
    """None without secrets."""
    # stages only
    blocks: BlockRange | None = None
    share: ShareName = ""
    """Whoever conducts this one has this stage; vision workers serve all."""
    num_layers: Count = 0
    kv_capacity_tokens: Count = 0
    max_batch_tokens: Count = 0
    """Most tokens of one microbatch that this worker computes."""
    max_step_sessions: Count = 0
    """Sessions of one microbatch up to which a GPU has graphs: more take longer than they have to. 0: any number."""
    copies_prefixes: bool = False
    """Whether a session may begin with KV of another one here; earlier releases refuse such sessions."""
    verifies_drafts: bool = False
    """Whether segments may end in drafts here; earlier releases refuse such envelopes."""
    keeps_prefixes: bool = False
    """Whether it knows `SessionClose.num_kept_tokens`; earlier releases refuse messages that have it."""


class CarriedCounts(WireReport, frozen=True, kw_only=True):
    """Payloads that took one way."""

    num_messages: Count = 0
    num_bytes: Count = 0


class TransportCounts(WireReport, frozen=True, kw_only=True):
    """What a process's transport has got over since it was opened."""

    num_reconnects: Count = 0
    """Times that one of its connections was lost and made again."""
    num_dropped: Count = 0
    """Messages for which there was no room."""
    num_malformed: Count = 0
    """Messages that broke the contract."""
    num_incomplete: Count = 0
    """Messages given up because parts of them were missing."""
    carried: dict[str, CarriedCounts] = msgspec.field(default_factory=dict)
    """Payloads sent to other workers, by kind of edge; under `nats`, those that found no edge, or none with room."""
    num_edges_lost: Count = 0
    """Edges to other workers that ended before this process did."""


class Heartbeat(WireReport, frozen=True, kw_only=True):
    """A sign of life, published every `heartbeat_s`; also carries what `status` shows."""

    worker: Name
    instance: Name
    role: Role
    state: Literal["ready", "draining"] = "ready"
    num_sessions: Count = 0
    kv_used_tokens: Count = 0
    kv_kept_tokens: Count = 0
    """Beside these, tokens that are kept of sessions that have ended."""
    num_microbatches: Count = 0
    num_tokens: Count = 0
    busy_s: Seconds = 0.0
    """Seconds spent computing since the start of this instance."""
    bubble_s: Seconds = 0.0
    """Seconds since then in which it held sessions and had nothing to compute."""
    queue_s: Seconds = 0.0
    """Seconds that microbatches have waited here, added up."""
    num_cache_hits: Count = 0
    """Pictures that a vision worker found encoded already."""
    num_cache_misses: Count = 0
    """Pictures that it did not."""
    transport: TransportCounts = TransportCounts()
