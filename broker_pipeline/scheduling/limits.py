"""What the scheduler keeps to."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.scheduling.drafts.limits import DraftLimits

_NO_DRAFTS = DraftLimits()


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Times in seconds."""

    max_sessions: int = 512
    """Sessions that hold KV on one route at a time."""
    max_batch_tokens: int = 8192
    """Tokens of one microbatch; a route whose workers take fewer gets fewer."""
    kv_step_tokens: int = 128
    """KV that a session reserves ahead: a region that has to move for each step costs 2 to 3 % of what attention reads
    of it in that time.
    """
    drafts: DraftLimits = _NO_DRAFTS
    kept_prefix_share: float = 0.5
    """Most of each worker's KV that is kept of finished sessions: less of it is nearer to free room, where regions need
    not be moved together.
    """
    overtake_s: float = 2.0
    """How long shorter sessions may pass by one for which there is no room."""
    deadline_s: float = 30.0
    """How long a microbatch may take beyond what is expected."""
    first_deadline_s: float = 180.0
    """The same for a route with a stage that has not computed yet: it may have kernels to build. No more than
    this is expected of a step larger than any before.
    """
    probe_deadline_s: float = 5.0
    """How long a message that only asks for an answer is remembered."""
    suspect_s: float = 2.0
    """How late a microbatch may be before another is sent after it to see whether it was lost."""
    grace_s: float = 0.5
    """How much later one that was overtaken may still come: small envelopes and large ones take two connections."""
