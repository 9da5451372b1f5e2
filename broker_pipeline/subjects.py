"""Every NATS subject and stream in one place.

A worker's subjects hang below one root that holds its instance id, so that nothing addressed to a dead instance can
reach the one that took its name.
"""

from __future__ import annotations

from datetime import datetime

DELIVERY = (
    r"^\$JS\.ACK\.(?:[^.*>\s]+\.)*?(?P<consumer>[^.*>\s]+)\.\d{1,20}\.(?P<number>\d{1,20})"
    r"(?:\.\d{1,20}){3}(?:\.[^.*>\s]+)?\Z"
)
"""Where JetStream is told of a delivery: of which consumer, and of which message of its stream. Newer servers name a
domain before these."""
_NOBODY = "="
"""In place of an empty tenant; no name of one has it."""

NUM_MEDIA_STREAMS = 4
REPLIES = "reply"
"""Below an inbox: answers of ours. JetStream's, which none of us may write, have other names."""


def worker_root(namespace: str, pipeline: str, role: str, worker: str, instance: str) -> str:
    """Root of one instance's subjects; this is `WorkerRecord.subject`.

    A worker `HOST_NAME` has its host as a token of its own, since servers allow subjects by whole tokens.
    """
    host, _, name = worker.partition("_")
    place = f"{host}.{name}" if name else f"-.{worker}"
    return f"{namespace}.{pipeline}.{role}.{place}.{instance}"


def work(root: str) -> str:
    """Envelopes for a stage, `PrepareRequest`s for a vision worker."""
    return f"{root}.work"


def cancel_work(root: str) -> str:
    """`PrepareCancel`s for a vision worker."""
    return f"{root}.cancel"


def rows(root: str) -> str:
    """Visual rows for a stage (request and reply)."""
    return f"{root}.rows"


def control(root: str) -> str:
    """Hellos (request and reply)."""
    return f"{root}.control"


def drain(root: str) -> str:
    """`DrainRequest`s (request and reply)."""
    return f"{root}.drain"


def edges(root: str) -> str:
    """`EdgeAsk`s: how payloads reach this instance without NATS (request and reply)."""
    return f"{root}.edges"


def lost_peers(namespace: str, pipeline: str) -> str:
    """`PeerLost`s of every worker."""
    return f"{namespace}.{pipeline}.lost_peer"


def lost_peers_of(root: str) -> str:
    """Return where a worker with this root says whom it has lost."""
    namespace, pipeline, *_ = root.split(".")
    return lost_peers(namespace, pipeline)


def edge_root(subject: str) -> str | None:
    """Return the root of the worker that takes payloads on `subject`, and may have edges; None where nobody does."""
    root, _, what = subject.rpartition(".")
    return root if what in {"work", "rows"} else None


def host_of(root: str) -> str:
    """Return the host in the name of the worker with this root; `-` where that names none, nothing where it is none."""
    tokens = root.split(".")
    return tokens[3] if len(tokens) == 6 else ""


def results(namespace: str, pipeline: str, instance: str) -> str:
    """Root of the subjects of `MicrobatchResult`s for one conductor instance, or for one of its shares."""
    return f"{namespace}.{pipeline}.conductor.{instance}.results"


def all_results(root: str) -> str:
    """Results of all microbatches, each of which has a subject of its own."""
    return f"{root}.*"


def heartbeat(root: str) -> str:
    """`Heartbeat`s of one instance: below its root, so that no host can send those of another's worker."""
    return f"{root}.heartbeat"


def heartbeats(namespace: str, pipeline: str) -> str:
    """Every worker's heartbeats."""
    return heartbeat(f"{namespace}.{pipeline}.*.*.*.*")


def heartbeat_root(subject: str) -> str:
    """Return the root of the worker whose heartbeats come on `subject`."""
    return subject.removeprefix("bulk.").removesuffix(".heartbeat")


def cancel(namespace: str) -> str:
    """`CancelRequest`s from gateways to conductors."""
    return f"{namespace}.cancel"


def watch(namespace: str) -> str:
    """`WatchRequest`s from gateways to conductors."""
    return f"{namespace}.watch"


def job_events(namespace: str, job_id: str, kind: str = "*") -> str:
    """`JobEvent`s of one job, or of all (`*`), of one kind or of all."""
    return f"{namespace}.events.{job_id}.{kind}"


def job_queue_subjects(namespace: str) -> list[str]:
    """Subjects of all the work queue's messages."""
    return [f"{namespace}.queue.jobs", f"{namespace}.queue.jobs.*.*"]


def job_queue_subject(namespace: str, priority: str = "interactive", tenant: str = "") -> str:
    """Subject of the work queue's messages of one flow.

    Nobody's interactive jobs have the one of all jobs in earlier releases, so that those are run as well.
    """
    root = f"{namespace}.queue.jobs"
    return root if (priority, tenant) == ("interactive", "") else f"{root}.{priority}.{tenant or _NOBODY}"


def job_flow(namespace: str, subject: str) -> tuple[str, str]:
    """Return priority and tenant of the flow with this subject."""
    priority, _, tenant = subject.removeprefix(f"{namespace}.queue.jobs").removeprefix(".").partition(".")
    return priority or "interactive", tenant.replace(_NOBODY, "")


def job_calls(namespace: str) -> str:
    """Empty messages that say that there is a job in the queue."""
    return f"{namespace}.queue.calls"


def job_stream(namespace: str) -> str:
    """Name of the JetStream stream behind the work queue."""
    return f"{namespace}-jobs"


def job_consumer(namespace: str, made_at: datetime, priority: str, tenant: str) -> str:
    """Return the name of the durable consumer that all conductors pull a flow from, of a stream that was made then."""
    return f"{namespace}-{priority}-{tenant or _NOBODY}-{round(made_at.timestamp() * 1e6)}"


def media_stream(namespace: str, shard: int) -> str:
    """Name of one of the JetStream streams that hold media."""
    return f"{namespace}-media-{shard}"


def media_chunks(namespace: str) -> str:
    """Subjects of the chunks of all objects."""
    return f"{namespace}.media.*.*"


def media(namespace: str, shard: int, object_id: str) -> str:
    """Subject of the chunks of one object in such a stream, or of all (`*`)."""
    return f"{namespace}.media.{shard}.{object_id}"


def file_stream(namespace: str) -> str:
    """Name of the JetStream stream that holds files."""
    return f"{namespace}-files"


def file_chunk(namespace: str, part: str, index: int | str) -> str:
    """Subject of one chunk of a part of a file, or of all (`*`)."""
    return f"{namespace}.files.{part}.{index}"


def bulk(subject: str) -> str:
    """Subject on which large messages for `subject` travel, so that small ones do not wait behind them.

    A prefix keeps wildcards working at both ends of a subject.
    """
    return subject if subject.startswith("bulk.") else f"bulk.{subject}"
