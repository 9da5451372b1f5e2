"""Who may read what in Redis, and write it: a row for each kind of key. `server_configs` makes the ACL file of it.

What no row allows, Redis refuses. Hosts' names have no underscore, so that `gpu-1_` begins no other host's names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker_pipeline import redis_keys
from broker_pipeline.security.roles import ANY, WORKERS, Role, Scope


@dataclass(frozen=True, slots=True)
class KeyRow:
    """Keys in Redis: who may read them, and who may write them as well."""

    what: str
    names: Callable[[Scope], tuple[str, ...]]
    write: tuple[Role, ...] = ()
    read: tuple[Role, ...] = ()
    add: tuple[Role, ...] = ()
    """Who may add names to a set, and do nothing else with it."""
    of_host: bool = False
    """Whether it is only keys of the own host."""


def _own(at: Scope) -> str:
    return ANY if at.host == ANY else f"{at.host}_*"


KEYS = (
    KeyRow(
        "jobs, their tokens and results",
        lambda at: (
            redis_keys.job(at.namespace, ANY),
            f"{redis_keys.jobs(at.namespace)}*",
            f"{redis_keys.expiry(at.namespace)}*",
            f"{redis_keys.unpublished(at.namespace)}*",
            f"{redis_keys.counts(at.namespace)}*",
            redis_keys.idempotency(at.namespace, ANY),
            redis_keys.tenant(at.namespace, ANY),
        ),
        write=("gateway", "conductor"),
    ),
    KeyRow(
        "which pictures jobs need", lambda at: (redis_keys.media(at.namespace, ANY),), write=("gateway", "conductor")
    ),
    KeyRow(
        "files and batches",
        lambda at: (
            redis_keys.files(at.namespace, ANY),
            f"{redis_keys.files_expiry(at.namespace)}*",
            f"{redis_keys.files_doomed(at.namespace)}*",
            redis_keys.file(at.namespace, ANY),
            redis_keys.batches(at.namespace, ANY),
            redis_keys.batches_waiting(at.namespace, ANY),
            f"{redis_keys.batches_turns(at.namespace)}*",
            f"{redis_keys.batches_carried(at.namespace)}*",
            f"{redis_keys.batches_active(at.namespace)}*",
            f"{redis_keys.batches_expiry(at.namespace)}*",
            f"{redis_keys.batches_untold(at.namespace)}*",
            redis_keys.batch(at.namespace, ANY),
            redis_keys.batch_key(at.namespace, ANY),
            redis_keys.lease(at.namespace, "batches", ANY),
            redis_keys.epoch(at.namespace, "batches"),
        ),
        write=("gateway",),
    ),
    KeyRow(
        "what keys to the gateway have left", lambda at: (redis_keys.limits(at.namespace, ANY),), write=("gateway",)
    ),
    KeyRow(
        "what the page shows: rates of the last hour, thumbnails",
        lambda at: (
            redis_keys.rates(at.namespace, ANY),
            redis_keys.thumbnail(at.namespace, ANY),
            redis_keys.thumbnails(at.namespace),
        ),
        write=("gateway",),
    ),
    KeyRow("whether Redis takes writes", lambda at: (redis_keys.probe(at.namespace),), write=("gateway",)),
    KeyRow(
        "keys to the gateway",
        lambda at: (redis_keys.gateway_keys(at.namespace),),
        write=("operator",),
        read=("gateway", "conductor"),
    ),
    KeyRow(
        "names of workers and pipelines",
        lambda at: (f"{redis_keys.workers(at.namespace, ANY)}*", f"{redis_keys.pipelines(at.namespace)}*"),
        write=("gateway", "conductor"),
        read=("operator",),
        add=WORKERS,
    ),
    KeyRow(
        "the own host's workers",
        lambda at: (redis_keys.worker(at.namespace, ANY, _own(at)),),
        write=WORKERS,
        of_host=True,
    ),
    KeyRow(
        "the own host's conductors",
        lambda at: (redis_keys.conductor(at.namespace, ANY, _own(at)),),
        write=("conductor",),
        of_host=True,
    ),
    KeyRow(
        "all workers and conductors",
        lambda at: (redis_keys.worker(at.namespace, ANY, ANY), redis_keys.conductor(at.namespace, ANY, ANY)),
        read=("gateway", "conductor", "operator"),
    ),
    KeyRow(
        "shares of a pipeline: who conducts them",
        lambda at: (f"{redis_keys.lease(at.namespace, ANY)}*", redis_keys.epoch(at.namespace, ANY)),
        write=("conductor",),
        read=("operator",),
    ),
    KeyRow(
        "shares of a pipeline: how they do",
        lambda at: (f"{redis_keys.status(at.namespace, ANY)}*",),
        write=("conductor",),
        read=("gateway", "operator"),
    ),
)

# Commands that our processes use, in scripts and outside of them. None of them lists keys by pattern.

_CONNECTION = ("ping", "select")
_TRANSACTIONS = ("multi", "exec", "discard", "watch", "unwatch")

WORKER_COMMANDS = (*_CONNECTION, *_TRANSACTIONS, "del", "exists", "get", "info", "pttl", "set", "time")
"""No scripts: those of a stranger would keep Redis busy for good, or fill its memory."""

ALL_COMMANDS = (
    *WORKER_COMMANDS,
    *("evalsha", "script|load"),
    *("expire", "getbit", "hdel", "hget", "hgetall", "hincrby", "hlen", "hmget", "hset", "hsetnx", "hvals", "lindex"),
    *(
        "llen",
        "lrange",
        "ltrim",
        "mget",
        "persist",
        "pexpire",
        "rename",
        "rpush",
        "sadd",
        "scard",
        "setbit",
        "smembers",
        "srandmember",
        "srem",
        "strlen",
        "type",
        "zadd",
    ),
    *("zcard", "zrange", "zrangebyscore", "zrank", "zrem", "zremrangebyscore", "zrevrange"),
    *("zrevrangebyscore", "zrevrank", "zscore"),
)
