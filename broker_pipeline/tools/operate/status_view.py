"""The state of a pipeline as a person reads it: is it ready, what is missing, who works on what, how fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.status import SERVING_STATES, ConductorStatus, RouteStatus, SessionLimits, ShareStatus
from broker_pipeline.messages.workers import BlockRange, WorkerRecord
from broker_pipeline.security.certificate_ends import end_warning
from broker_pipeline.tools.fitting_table import ARROW, FittingTable, Row

_STATE_STYLES = {
    "ready": "green",
    **dict.fromkeys(("draining", "trial"), "yellow"),
    **dict.fromkeys(("suspended", "refused"), "bold red"),
}
_WORDS = {"trial": "on trial"}

_SHARE_HEADINGS = ("share", "conductor", "epoch", "routes", "sessions", "captions/s")
_ROUTE_HEADINGS = ("route", "sessions", "in flight")
_WORKER_HEADINGS = (
    "worker",
    "holds",
    "state",
    "busy",
    "bubble",
    "KV tokens",
    "sent by",
    "device",
    "dtype",
    "host",
    "pid",
)


def render_status(status: PipelineStatus) -> RenderableType:
    """Return everything that `broker-pipeline status` prints."""
    parts: list[RenderableType] = [_headline(status), Text(describe_work(status)), Text("")]
    if status.conductor is not None and status.conductor.shares:
        parts += [FittingTable(_SHARE_HEADINGS, list(map(_share, status.conductor.shares))), Text("")]
    if status.conductor is not None and status.conductor.routes:
        parts += [FittingTable(_ROUTE_HEADINGS, _routes(status.conductor.routes)), Text("")]
    if status.workers:
        parts += [FittingTable(_WORKER_HEADINGS, list(_workers(status))), Text("")]
    parts += [Text(hint) for hint in hints(status)]
    return Group(*parts)


def hints(status: PipelineStatus, now: datetime | None = None) -> Iterator[str]:
    """Say what is missing or ends soon, and what would help."""
    for host, seconds in status.certificates.items():
        ends_at = datetime.fromtimestamp(seconds, UTC)
        if warning := end_warning(f"The certificate of {host}", host, ends_at, now or datetime.now(UTC)):
            yield warning
    conductor = status.conductor
    if conductor is None:
        yield "No conductor is active: jobs wait. Start one: broker-pipeline conductor --model ARTIFACTS"
        return
    for share in conductor.shares:
        if not share.num_routes:
            yield f"Share {share.share!r} runs nothing: its usable stages do not hold the whole model"
    for blocks in conductor.missing_blocks:
        shown = _blocks(blocks)
        command = f"broker-pipeline stage --model ARTIFACTS --blocks {shown}"
        yield f"No usable stage holds layers {shown}. Start one: {command}"
    if not any(worker.state in SERVING_STATES for worker in conductor.vision):
        yield "No vision worker is ready. Start one: broker-pipeline vision --model ARTIFACTS"
    if conductor.waits_for and status.queue.num_waiting:
        yield f"Jobs wait: {conductor.waits_for}"
    troubled = [(each.worker, each.state, each.reason) for each in conductor.stages]
    troubled += [(each.worker, each.state, each.reason) for each in conductor.vision]
    for name, state, reason in troubled:
        if reason:
            yield f"{name}{'' if state == 'ready' else f' is {_WORDS.get(state, state)}'}: {reason}"
    for refused in conductor.refused:
        yield f"{refused.worker} is not used: {refused.reason}"


def describe_workers(status: PipelineStatus) -> str:
    """Return a line for each worker on a route or at the pictures."""
    conductor = status.conductor
    used = set() if conductor is None else {name for route in conductor.routes for name in route.workers}
    used |= set() if conductor is None else {worker.worker for worker in conductor.vision}
    records = [record for record in status.workers if record.worker in used]
    return "\n".join(
        f"  {record.worker:<10} {_holds(record):<14} {record.device}, pid {record.pid}" for record in records
    )


def describe_work(status: PipelineStatus) -> str:
    """Return jobs, rates and sessions, a line each."""
    jobs = ", ".join(f"{count} {name}" for name, count in status.jobs.items())
    lines = [f"jobs    {jobs}", f"queue   {status.queue.num_waiting} waiting, {status.queue.num_in_progress} taken"]
    conductor = status.conductor
    if conductor is not None:
        sessions = ", ".join(f"{count} {name}" for name, count in conductor.num_sessions.items() if count) or "none"
        lines.append(f"rates   {conductor.tokens_per_s:.1f} tokens/s, {conductor.captions_per_s:.2f} captions/s")
        again = f"replays: {conductor.num_replays}; preemptions: {conductor.num_preemptions}"
        lines.append(f"work    sessions: {sessions}; {again}")
        if conductor.num_copied_tokens:
            lines.append(f"prompts {conductor.num_prompt_tokens} tokens, {conductor.num_copied_tokens} of them copied")
        if conductor.num_draft_tokens:
            lines.append(f"drafts  {conductor.num_draft_tokens} tokens, {conductor.num_accepted_tokens} accepted")
        if (kept := conductor.kept).num_prefixes or kept.num_hits:
            lines.append(
                f"kept    {kept.num_prefixes} beginnings of {kept.num_tokens} tokens; "
                f"{kept.num_hits} sessions have begun with one, {kept.num_evictions} have made room"
            )
        if (hedges := conductor.hedges).num_hedges:
            lines.append(
                f"hedges  {hedges.num_hedges} of {hedges.num_requests} requests to vision workers, {hedges.num_won} won"
            )
        if limits := conductor.limits:
            lines.append(f"limits  {_limits(limits)}")
    return "\n".join(lines)


def _limits(limits: SessionLimits) -> str:
    """Return how long sessions may be, and their outputs unless asked."""
    default, reasoning = limits.default_max_tokens, limits.default_max_tokens_reasoning
    shown = f"output {default}" if default == reasoning else f"output {default}, with reasoning {reasoning}"
    most = limits.max_tokens_in_all
    model = "" if most == limits.max_position_embeddings else f" (the model takes {limits.max_position_embeddings})"
    return f"{shown} tokens unless asked; prompt and output {most}{model}"


def _headline(status: PipelineStatus) -> Text:
    conductor = status.conductor
    is_ready = conductor is not None and bool(conductor.routes)
    text = Text(f"pipeline {status.pipeline}  ", style="bold")
    text.append("ready" if is_ready else "not ready", style="bold green" if is_ready else "bold red")
    if conductor is not None:
        model = f"{conductor.model} {conductor.fingerprint[:12]}".strip()
        by = f"{conductor.instance}, epoch {conductor.epoch}"
        if conductor.shares:
            num_conductors = len({share.instance for share in conductor.shares})
            by = f"{len(conductor.shares)} shares, conductors: {num_conductors}"
        by += f", up {_duration(conductor.uptime_s)}"
        text.append(f"\nmodel   {model}\nby      {by}", style="dim")
    return text


def _share(share: ShareStatus) -> Row:
    counts = share.epoch, share.num_routes, share.num_running
    return share.share or "(no name)", share.instance, *map(str, counts), f"{share.captions_per_s:.2f}"


def _routes(routes: Iterable[RouteStatus]) -> list[Row]:
    rows: list[Row] = []
    for route in routes:
        stops = zip(route.workers, route.blocks, strict=False)
        chain = ARROW.join(f"{worker} {_blocks(blocks)}" for worker, blocks in stops)
        rows.append((chain, str(route.num_sessions), str(route.num_in_flight)))
    return rows


def _workers(status: PipelineStatus) -> Iterator[Row]:
    seen = _seen_by_conductor(status.conductor)
    for record in status.workers:
        state, busy, bubble, kv = seen.get((record.worker, record.instance), (record.state, "", "", ""))
        yield (
            record.worker,
            _holds(record),
            Text(state, style=_STATE_STYLES.get(state, "")),
            *(busy, bubble, kv, _sent_by(record, status.conductor)),
            *(record.device, record.dtype, record.host, str(record.pid)),
        )


def _seen_by_conductor(conductor: ConductorStatus | None) -> dict[tuple[str, str], tuple[str, str, str, str]]:
    """Return state, shares and KV use by worker and instance: what the conductor thinks counts, not what a worker says.

    Whoever is refused may have said another's instance.
    """
    if conductor is None:
        return {}
    seen = {
        (worker.worker, worker.instance): (worker.state, f"{worker.busy:.0%}", "", "") for worker in conductor.vision
    }
    for stage in conductor.stages:
        kv = f"{stage.kv_used_tokens}/{stage.kv_capacity_tokens}"
        seen[stage.worker, stage.instance] = (stage.state, f"{stage.busy:.0%}", f"{stage.bubble:.0%}", kv)
    return seen | {(refused.worker, refused.instance): ("refused", "", "", "") for refused in conductor.refused}


def _sent_by(record: WorkerRecord, conductor: ConductorStatus | None) -> str:
    """Return what carries a worker's payloads to others, and how many bytes it carried."""
    counts = conductor.transport.get(record.worker) if conductor is not None else None
    carried = counts.carried if counts is not None else {}
    return ", ".join(f"{edge} {decimal(each.num_bytes)}" for edge, each in sorted(carried.items(), reverse=True))


def _holds(record: WorkerRecord) -> str:
    if record.blocks is not None:
        return f"layers {_blocks(record.blocks)}" + (f", share {record.share}" if record.share else "")
    return {"vision": "pictures"}.get(record.role, record.role)


def _blocks(blocks: BlockRange) -> str:
    return f"{blocks.start}:{blocks.stop}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
