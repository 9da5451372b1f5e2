"""Keys to the gateway: whose they are, what they allow, and how much of it."""

from typing import Annotated, Literal

from msgspec import Meta

from broker_pipeline.messages.base import Name, PositiveCount, Seconds, WireReport

Scope = Literal["submit", "read", "operate"]
"""Submit, retry and stop one's own jobs; see one's own jobs and the pipeline's state; do all of that with everybody's
jobs, and drain workers."""


Weight = Annotated[float, Meta(ge=0.01, le=100)]


class KeyLimits(WireReport, frozen=True, kw_only=True):
    """How much one key may ask for, at all gateways together; None is as much as it likes."""

    requests_per_minute: PositiveCount | None = None
    tokens_per_minute: PositiveCount | None = None
    """Of texts and outputs, as far as they are known when a job is submitted: an output by its limit."""
    max_parallel: PositiveCount | None = None
    """Requests that make jobs, and lines of batches, under way at the same time, each until it is answered."""
    max_queued: PositiveCount | None = None
    """Jobs of its tenant that wait."""


class GatewayKey(WireReport, frozen=True, kw_only=True):
    """What is known of a key, which nobody but its holder knows."""

    tenant: Name
    scopes: tuple[Scope, ...]
    created_at: Seconds
    limits: KeyLimits = KeyLimits()
    weight: Weight = 1.0
    """What its tenant's jobs get where several tenants' wait, beside the others' weights: the most of its keys."""
