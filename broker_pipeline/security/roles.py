"""Who may do what: one table of subjects and one of keys. The servers' configurations and the manual are made of them.

A right is for one role on one host. Where a row says `of_host`, the host's own subjects or keys are meant: a worker's
name begins with `HOST_`, so that no other host can take it or hear what is sent to it.

    publish, subscribe     may send there; may hear what is sent there
    read, write            may read the key; may read and write it

What no row allows is refused by the servers. `HOST` is a token of subjects (see `subjects.worker_root`) and a prefix of
names in Redis; hosts' names have no underscore, so that `gpu-1_` is no prefix of another host's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from broker_pipeline import redis_keys, subjects
from broker_pipeline.security.commands import ALL_COMMANDS, WORKER_COMMANDS

Role = Literal["gateway", "conductor", "vision", "stage", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
WORKERS: tuple[Role, ...] = ("vision", "stage")
Host = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
LOCAL_HOST = "local"
"""The one host of `up`: it has all workers, whatever their names."""

_ANY = "*"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a row's name is asked for: a namespace, and whose subjects or keys."""

    namespace: str
    host: str
    """A host's name, or `*` for all."""

    def root(self, role: str) -> str:
        """Return the roots of subjects of these hosts' workers of a role."""
        return subjects.worker_root(self.namespace, _ANY, role, f"{self.host}_{_ANY}", _ANY)

    def stream(self, api: str, stream: str, rest: str = "") -> str:
        """Return the subject of a request to JetStream about one of its streams."""
        return f"$JS.API.{api}.{stream}{rest}"


@dataclass(frozen=True, slots=True)
class SubjectRow:
    """A subject, or some of one kind: who may send to it, and who may hear it."""

    what: str
    names: Callable[[Scope], tuple[str, ...]]
    publish: tuple[Role, ...] = ()
    subscribe: tuple[Role, ...] = ()
    of_host: bool = True
    """Whether a listener hears only what is for its own host, where the subject names one."""
    is_message: bool = True
    """Whether it is one of ours, which large messages take as `bulk.…`; not of JetStream's."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """Keys in Redis: who may read them, and who may write them as well."""

    what: str
    names: Callable[[Scope], tuple[str, ...]]
    write: tuple[Role, ...] = ()
    read: tuple[Role, ...] = ()
    of_host: bool = False
    """Whether it is only keys of the own host."""


@dataclass(frozen=True, slots=True)
class Rights:
    """All that one role on one host may do, as the servers know it: patterns, with wildcards."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    commands: tuple[str, ...]


def redis_user(role: Role, host: str) -> str:
    """Return the name of a role's user in Redis."""
    return f"{role}-{host}"


def inbox_prefix(role: str, host: str) -> str:
    """Return where answers to requests of a role on a host arrive."""
    return f"_INBOX.{role}.{host}"


def worker_prefix(host: str) -> str:
    """Return what names of a host's workers begin with."""
    return "" if host == LOCAL_HOST else f"{host}_"


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
    return lambda _: tuple(f"{inbox_prefix(asker, _ANY)}.{subjects.REPLIES}.>" for asker in askers)


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
        lambda at: (subjects.all_results(subjects.results(at.namespace, _ANY, _ANY)),),
        publish=("stage",),
        subscribe=("conductor",),
    ),
    SubjectRow(
        "heartbeats, and words of lost peers",
        lambda at: (subjects.heartbeats(at.namespace, _ANY), subjects.lost_peers(at.namespace, _ANY)),
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
        lambda at: (subjects.job_events(at.namespace, _ANY),),
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
        "putting jobs into the queue",
        lambda at: (subjects.job_queue_subject(at.namespace),),
        publish=("gateway", "conductor"),
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
        lambda at: (subjects.media_chunks(at.namespace), subjects.file_chunk(at.namespace, _ANY, _ANY)),
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

KEYS = (
    KeyRow(
        "jobs, their tokens and results",
        lambda at: (
            redis_keys.job(at.namespace, _ANY),
            f"{redis_keys.jobs(at.namespace)}*",
            f"{redis_keys.expiry(at.namespace)}*",
            f"{redis_keys.unpublished(at.namespace)}*",
            f"{redis_keys.counts(at.namespace)}*",
            redis_keys.idempotency(at.namespace, _ANY),
            redis_keys.tenant(at.namespace, _ANY),
        ),
        write=("gateway", "conductor"),
    ),
    KeyRow(
        "which pictures jobs need", lambda at: (redis_keys.media(at.namespace, _ANY),), write=("gateway", "conductor")
    ),
    KeyRow(
        "files and batches",
        lambda at: (
            redis_keys.files(at.namespace, _ANY),
            f"{redis_keys.files_expiry(at.namespace)}*",
            f"{redis_keys.files_doomed(at.namespace)}*",
            redis_keys.file(at.namespace, _ANY),
            redis_keys.batches(at.namespace, _ANY),
            f"{redis_keys.batches_active(at.namespace)}*",
            f"{redis_keys.batches_expiry(at.namespace)}*",
            f"{redis_keys.batches_untold(at.namespace)}*",
            redis_keys.batch(at.namespace, _ANY),
            redis_keys.batch_key(at.namespace, _ANY),
            redis_keys.lease(at.namespace, "batches", _ANY),
            redis_keys.epoch(at.namespace, "batches"),
        ),
        write=("gateway",),
    ),
    KeyRow(
        "what keys to the gateway have left", lambda at: (redis_keys.limits(at.namespace, _ANY),), write=("gateway",)
    ),
    KeyRow("whether Redis takes writes", lambda at: (redis_keys.probe(at.namespace),), write=("gateway",)),
    KeyRow(
        "keys to the gateway",
        lambda at: (redis_keys.gateway_keys(at.namespace),),
        write=("operator",),
        read=("gateway",),
    ),
    KeyRow(
        "names of workers and pipelines",
        lambda at: (f"{redis_keys.workers(at.namespace, _ANY)}*", f"{redis_keys.pipelines(at.namespace)}*"),
        write=("gateway", "conductor", "vision", "stage"),
        read=("operator",),
    ),
    KeyRow(
        "the own host's workers",
        lambda at: (redis_keys.worker(at.namespace, _ANY, f"{at.host}_*" if at.host != _ANY else _ANY),),
        write=("conductor", "vision", "stage"),
        of_host=True,
    ),
    KeyRow(
        "all workers",
        lambda at: (redis_keys.worker(at.namespace, _ANY, _ANY),),
        read=("gateway", "conductor", "operator"),
    ),
    KeyRow(
        "shares of a pipeline: who conducts them",
        lambda at: (f"{redis_keys.lease(at.namespace, _ANY)}*", redis_keys.epoch(at.namespace, _ANY)),
        write=("conductor",),
        read=("operator",),
    ),
    KeyRow(
        "shares of a pipeline: how they do",
        lambda at: (f"{redis_keys.status(at.namespace, _ANY)}*",),
        write=("conductor",),
        read=("gateway", "operator"),
    ),
)


def rights_of(role: Role, host: str, namespace: str) -> Rights:
    """Return what the servers are to allow a role on a host in a namespace."""
    everywhere = Scope(namespace, _ANY)
    own = everywhere if host == LOCAL_HOST else Scope(namespace, host)
    inbox = f"{inbox_prefix(role, host)}.>"
    publish = [inbox, subjects.bulk(inbox)]
    subscribe = [inbox, subjects.bulk(inbox)]
    for row in SUBJECTS:
        if role in row.publish:
            publish += _both_ways(row, everywhere)
        if role in row.subscribe:
            subscribe += _both_ways(row, own)
    read = [name for row in KEYS if role in row.read for name in row.names(own if row.of_host else everywhere)]
    write = [name for row in KEYS if role in row.write for name in row.names(own if row.of_host else everywhere)]
    commands = WORKER_COMMANDS if role in WORKERS else ALL_COMMANDS
    return Rights(tuple(publish), tuple(subscribe), tuple(read), tuple(write), commands)


def _both_ways(row: SubjectRow, at: Scope) -> Iterator[str]:
    for name in row.names(at):
        yield name
        if row.is_message:
            yield subjects.bulk(name)
