"""What the conductors of several shares show, as if it were one conductor's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from broker_pipeline.messages.status import (
    ConductorStatus,
    HedgeCounts,
    KeptCounts,
    SessionLimits,
    ShareStatus,
    VisionStatus,
)


def merged(statuses: Sequence[ConductorStatus]) -> ConductorStatus | None:
    """Return one status for all; None of none, and one alone as it is."""
    if len(statuses) < 2:
        return next(iter(statuses), None)
    first = statuses[0]
    return msgspec.structs.replace(
        first,
        updated_at=min(each.updated_at for each in statuses),
        uptime_s=max(each.uptime_s for each in statuses),
        routes=tuple(route for each in statuses for route in each.routes),
        missing_blocks=() if any(each.routes for each in statuses) else first.missing_blocks,
        stages=tuple(stage for each in statuses for stage in each.stages),
        vision=_vision(statuses),
        refused=tuple(
            {(worker.worker, worker.instance): worker for each in statuses for worker in each.refused}.values()
        ),
        waits_for=None if any(each.waits_for is None for each in statuses) else first.waits_for,
        num_sessions=_total(each.num_sessions for each in statuses),
        num_jobs_waiting=max(each.num_jobs_waiting for each in statuses),
        tokens_per_s=sum(each.tokens_per_s for each in statuses),
        captions_per_s=sum(each.captions_per_s for each in statuses),
        predicted_captions_per_s=max(each.predicted_captions_per_s for each in statuses),
        num_finished=_total(each.num_finished for each in statuses),
        num_replays=sum(each.num_replays for each in statuses),
        num_preemptions=sum(each.num_preemptions for each in statuses),
        num_prompt_tokens=sum(each.num_prompt_tokens for each in statuses),
        num_copied_tokens=sum(each.num_copied_tokens for each in statuses),
        num_draft_tokens=sum(each.num_draft_tokens for each in statuses),
        num_accepted_tokens=sum(each.num_accepted_tokens for each in statuses),
        kept=KeptCounts(**_total(msgspec.structs.asdict(each.kept) for each in statuses)),
        num_uncommitted_tokens=sum(each.num_uncommitted_tokens for each in statuses),
        limits=_strictest([each.limits for each in statuses if each.limits]),
        hedges=HedgeCounts(**_total(msgspec.structs.asdict(each.hedges) for each in statuses)),
        shares=tuple(map(_share, statuses)),
        transport={
            f"conductor-{each.instance}" if name == "conductor" else name: counts
            for each in statuses
            for name, counts in each.transport.items()
        },
    )


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _vision(statuses: Sequence[ConductorStatus]) -> tuple[VisionStatus, ...]:
    """Return vision workers, which all shares ask, with what all have asked of them and met."""
    workers: dict[str, VisionStatus] = {}
    for worker in (worker for each in statuses for worker in each.vision):
        first = workers.get(worker.instance)
        num_preparing = worker.num_preparing + (first.num_preparing if first else 0)
        num_overtaken = worker.num_overtaken + (first.num_overtaken if first else 0)
        workers[worker.instance] = msgspec.structs.replace(
            first or worker, num_preparing=num_preparing, num_overtaken=num_overtaken
        )
    return tuple(workers.values())


def _strictest(limits: Sequence[SessionLimits]) -> SessionLimits | None:
    """Return the limits of the share with the least room: any of them may get the next job."""
    return min(limits, key=lambda each: each.max_tokens_in_all, default=None)


def _share(status: ConductorStatus) -> ShareStatus:
    return ShareStatus(
        share=status.share,
        instance=status.instance,
        epoch=status.epoch,
        num_routes=len(status.routes),
        num_running=status.num_sessions.get("running", 0),
        captions_per_s=status.captions_per_s,
    )
