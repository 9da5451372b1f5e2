"""Who may send what, and hear it: a row for each kind of subject. `server_configs` makes NATS' configuration of it.

What no row allows, the server refuses. A worker's name begins with `HOST_`, and its subjects have the host as a token
of its own (see `subjects.worker_root`): only that host hears what is sent there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker_pipeline import subjects
from broker_pipeline.security.roles import ANY, WORKERS, Role, Scope, inbox_prefix


@dataclass(frozen=True, slots=True)
class SubjectRow:
    """A subject, or some of one kind: who may send to it, and who may hear it."""

    what: str
    names: Callable[[Scope], tuple[str, ...]]
    publish: tuple[Role, ...] = ()
    subscribe: tuple[Role, ...] = ()
    is_of_sender: bool = False
    """Whether a host in its names is the one that sends, which others may not; else it is the one that hears."""
    is_message: bool = True
    """Whether it is one of ours, which large messages take as `bulk.…`; not of JetStream's."""


def _streams(at: Scope) -> tuple[str, ...]:
    return (subjects.job_stream(at.namespace), *_media_streams(at), subjects.file_stream(at.namespace))


def _media_streams(at: Scope) -> tuple[str, ...]:
    return tuple(subjects.media_stream(at.namespace, shard) for shard in range(subjects.NUM_MEDIA_STREAMS))


def _per_stream(
    *apis: str, streams: Callable[[Scope], tuple[str, ...]] = _streams
) -> Callable[[Scope], tuple[str, ...]]:
    return lambda at: tuple(at.stream(api, stream) for api in apis for stream in streams(at))


def _direct_get(streams: Callable[[Scope], tuple[str, ...]]) -> Callable[[Scope], tuple[str, ...]]:
    return lambda at: tuple(f"$JS.API.DIRECT.GET.{stream}{rest}" for stream in streams(at) for rest in ("", ".>"))


def _queue_consumer(*apis: str) -> Callable[[Scope], tuple[str, ...]]:
    return lambda at: tuple(f"$JS.API.CONSUMER.{api}.{subjects.job_stream(at.namespace)}.>" for api in apis)


def _replies_to(*askers: Role) -> Callable[[Scope], tuple[str, ...]]:
    return lambda _: tuple(f"{inbox_prefix(asker, ANY)}.{subjects.REPLIES}.>" for asker in askers)


SUBJECTS = (
    SubjectRow(
        "work for stages (envelopes)",
        lambda at: (subjects.work(at.root("stage")),),
        publish=("conductor", "stage"),
        subscribe=("stage",),
    ),
    SubjectRow(
        "visual rows for stages",
        lambda at: (subjects.rows(at.root("stage")),),
        publish=("vision",),
        subscribe=("stage",),
    ),
    SubjectRow(
        "work for vision workers (prompts, names of pictures)",
        lambda at: (subjects.work(at.root("vision")), subjects.cancel_work(at.root("vision"))),
        publish=("conductor",),
        subscribe=("vision",),
    ),
    SubjectRow(
        "hellos to stages",
        lambda at: (subjects.control(at.root("stage")),),
        publish=("conductor",),
        subscribe=("stage",),
    ),
    SubjectRow(
        "hellos to vision workers",
        lambda at: (subjects.control(at.root("vision")),),
        publish=("conductor",),
        subscribe=("vision",),
    ),
    SubjectRow(
        "hellos among conductors",
        lambda at: (subjects.control(at.root("conductor")),),
        publish=("conductor",),
        subscribe=("conductor",),
    ),
    SubjectRow(
        "requests to drain a stage",
        lambda at: (subjects.drain(at.root("stage")),),
        publish=("gateway",),
        subscribe=("stage",),
    ),
    SubjectRow(
        "requests to drain a vision worker",
        lambda at: (subjects.drain(at.root("vision")),),
        publish=("gateway",),
        subscribe=("vision",),
    ),
    SubjectRow(
        "asking stages for edges",
        lambda at: (subjects.edges(at.root("stage")),),
        publish=("vision", "stage"),
        subscribe=("stage",),
    ),
    SubjectRow(
        "asking vision workers for edges",
        lambda at: (subjects.edges(at.root("vision")),),
        subscribe=("vision",),
    ),
    SubjectRow(
        "results of microbatches",
        lambda at: (subjects.all_results(subjects.results(at.namespace, ANY, ANY)),),
        publish=("stage",),
        subscribe=("conductor",),
    ),
    SubjectRow(
        "heartbeats",
        lambda at: (subjects.heartbeat(at.root(ANY)),),
        publish=("vision", "stage"),
        subscribe=("conductor",),
        is_of_sender=True,
    ),
    SubjectRow(
        "words of lost peers",
        lambda at: (subjects.lost_peers(at.namespace, ANY),),
        publish=("vision", "stage"),
        subscribe=("conductor",),
    ),
    SubjectRow(
        "cancelling and watching jobs",
        lambda at: (subjects.cancel(at.namespace), subjects.watch(at.namespace)),
        publish=("gateway",),
        subscribe=("conductor",),
    ),
    SubjectRow(
        "events of jobs (text as it is made)",
        lambda at: (subjects.job_events(at.namespace, ANY),),
        publish=("conductor", "gateway"),
        subscribe=("gateway",),
    ),
    SubjectRow(
        "answers to conductors",
        _replies_to("conductor"),
        publish=("conductor", "vision", "stage"),
    ),
    SubjectRow(
        "answers to gateways, vision workers and stages", _replies_to("gateway", "vision", "stage"), publish=WORKERS
    ),
    SubjectRow(
        "answers to the tools of `up`, which may do everything",
        lambda _: (f"_INBOX.{subjects.REPLIES}.>",),
        publish=("conductor", "vision", "stage"),
    ),
    SubjectRow(
        "putting jobs into the queue",
        lambda at: tuple(subjects.job_queue_subjects(at.namespace)),
        publish=("gateway", "conductor"),
        is_message=False,
    ),
    SubjectRow(
        "calling conductors to the queue",
        lambda at: (subjects.job_calls(at.namespace),),
        publish=("gateway", "conductor"),
        subscribe=("conductor",),
        is_message=False,
    ),
    SubjectRow(
        "taking jobs from the queue",
        lambda at: (*_queue_consumer("MSG.NEXT")(at), f"$JS.ACK.{subjects.job_stream(at.namespace)}.>"),
        publish=("conductor",),
        is_message=False,
    ),
    SubjectRow(
        "making the queue's consumer",
        lambda at: (
            *_queue_consumer("CREATE", "DURABLE.CREATE", "INFO", "DELETE")(at),
            f"$JS.API.CONSUMER.CREATE.{subjects.job_stream(at.namespace)}",
            f"$JS.API.CONSUMER.LIST.{subjects.job_stream(at.namespace)}",
        ),
        publish=("gateway", "conductor"),
        is_message=False,
    ),
    SubjectRow(
        "storing pictures and files",
        lambda at: (subjects.media_chunks(at.namespace), subjects.file_chunk(at.namespace, ANY, ANY)),
        publish=("gateway",),
        is_message=False,
    ),
    SubjectRow("reading pictures", _direct_get(_media_streams), publish=("gateway", "vision"), is_message=False),
    SubjectRow(
        "reading files",
        lambda at: (
            *_direct_get(lambda at: (subjects.file_stream(at.namespace),))(at),
            at.stream("STREAM.MSG.GET", subjects.file_stream(at.namespace)),
        ),
        publish=("gateway",),
        is_message=False,
    ),
    SubjectRow(
        "whether there are pictures at all",
        _per_stream("STREAM.INFO", streams=_media_streams),
        publish=("vision",),
        is_message=False,
    ),
    SubjectRow(
        "making streams, and removing what nobody needs",
        _per_stream("STREAM.CREATE", "STREAM.UPDATE", "STREAM.INFO", "STREAM.PURGE"),
        publish=("gateway", "conductor"),
        is_message=False,
    ),
    SubjectRow(
        "JetStream's room", lambda _: ("$JS.API.INFO",), publish=("gateway", "conductor", "operator"), is_message=False
    ),
)
