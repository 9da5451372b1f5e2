"""Small requests: handshakes, drains, cancels, watchers."""

from typing import Annotated

from msgspec import Meta

from broker_pipeline.messages.base import Count, Name, PipelineMessage, WireMessage, WireStruct
from broker_pipeline.messages.workers import WorkerRecord


class Hello(PipelineMessage, frozen=True, kw_only=True):
    """A round trip that proves that the listener is subscribed; also fences: a stage adopts a higher epoch."""

    epoch: Count = 0


class HelloReply(WireMessage, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A worker's answer to `Hello`."""

    record: WorkerRecord


class DrainRequest(PipelineMessage, frozen=True, kw_only=True):
    """Asks a worker to announce that it drains, finish the sessions that it has, and end. Asking again is harmless."""


class DrainReply(WireMessage, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A worker's answer to `DrainRequest`: its record, which says `draining`."""

    record: WorkerRecord


class CancelRequest(WireStruct, frozen=True, kw_only=True):
    """Asks whoever runs the job to stop at the next token."""

    job_id: Name


class WatchRequest(WireStruct, frozen=True, kw_only=True):
    """Asks conductors to publish these jobs' tokens as they are committed, for some seconds; those of others are not.

    Tokens are in Redis whether or not anybody watches.
    """

    job_ids: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    is_for_all: bool = False
    """Whether all jobs are meant, whatever their ids."""
    for_s: Annotated[float, Meta(gt=0, le=300)]
