"""All checks of a host: what each gathers, and who judges it.

Redis ──► RedisFacts ──► redis, clock                     facts that several judge are gathered once
      └─► MemberFacts ─► members, versions, model, edges
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.config import DEFAULT_NATS_URL, DEFAULT_REDIS_URL
from broker_pipeline.errors import PipelineError, SecretsError, StateDeniedError, SubjectDeniedError
from broker_pipeline.messages.base import Name
from broker_pipeline.process.daemon_thread import in_daemon_thread
from broker_pipeline.process.host_room import look
from broker_pipeline.security.tls_contexts import utc_now
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.doctor.artifact import judge_artifact, look_at_artifact
from broker_pipeline.tools.doctor.broker import judge_broker, look_at_broker
from broker_pipeline.tools.doctor.device import judge_device, look_at_device
from broker_pipeline.tools.doctor.edges import judge_edges, look_at_edges
from broker_pipeline.tools.doctor.examination import Check, Findings
from broker_pipeline.tools.doctor.finding import denied, unseen
from broker_pipeline.tools.doctor.host import judge_host, needs_of
from broker_pipeline.tools.doctor.members import (
    MemberFacts,
    judge_members,
    judge_model,
    judge_versions,
    look_at_members,
)
from broker_pipeline.tools.doctor.packages import judge_packages, look_at_packages
from broker_pipeline.tools.doctor.redis_server import RedisFacts, judge_clock, judge_redis, look_at_redis
from broker_pipeline.tools.doctor.secrets import (
    SENDERS,
    credentials_of,
    judge_certificate,
    judge_ends,
    look_at_certificate,
)
from broker_pipeline.wire.edges.settings import EdgeChoice, EdgeSettings
from broker_pipeline.wire.transport import Transport

T = TypeVar("T")
_EDGES_S = 10.0
"""For an answer and an address that nobody answers at, beyond what servers may take."""
_DEVICE_S = 90.0
"""torch takes a while to be imported, and each GPU to be initialised."""


_WORKERS = "who is in the pipeline"
_OF_MODEL = ("artifact", "model")
"""What is looked at only where an artifact is named."""


class DoctorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is looked at."""

    nats_url: str = DEFAULT_NATS_URL
    redis_url: str = DEFAULT_REDIS_URL
    secrets: str | None = None
    """Folder of this host's secrets."""
    namespace: Name = "bp"
    pipeline: Name = "main"
    model: str | None = None
    blocks: tuple[str, ...] = ()
    vision: bool = False
    full: bool = False
    """Whether weights are hashed."""
    device: str = "auto"
    edges: EdgeChoice = "auto"
    edge_tls: Literal["on", "off"] = "on"
    timeout_s: Annotated[float, Meta(gt=0)] = 6.0

    @property
    def is_worker(self) -> bool:
        """Whether this host is to compute."""
        return bool(self.blocks) or self.vision


class Shared(Generic[T]):
    """Facts that several checks judge: gathered once, or the same error for all."""

    def __init__(self, gather: Callable[[], Awaitable[T]]) -> None:
        """Begin to gather."""
        self._task = asyncio.ensure_future(gather())

    async def facts(self) -> T:
        """Return the facts; raises what `gather` raises."""
        return await asyncio.shield(self._task)

    async def judged(self, name: str, judge: Callable[[T], Findings], needed: str) -> Findings:
        """Return what `judge` says, or that there was nothing to judge: `needed` is not there, or not for us to ask."""
        try:
            return judge(await self.facts())
        except StateDeniedError:
            return [denied(name, _WORKERS)]
        except PipelineError:
            return [unseen(name, needed)]

    async def close(self) -> None:
        """Give up what still hangs."""
        self._task.cancel()
        await asyncio.wait({self._task})


@asynccontextmanager
async def checks_of(settings: DoctorSettings) -> AsyncIterator[Mapping[str, Check]]:
    """Yield the checks of a host, in the order in which they are shown."""
    redis, members = Shared(partial(_redis, settings)), Shared(partial(_members, settings))
    quick = settings.timeout_s
    servers_s = 2 * quick  # for several answers, each of which has half of it, and a connection's end
    start = "start it there, or correct the address; see docs/operations.md, NATS and Redis by hand"
    full_s = None if settings.full else quick
    try:
        checks = {
            "broker": Check(partial(_broker, settings), f"{start} (--nats-url)", servers_s),
            "redis": Check(partial(_judged_redis, redis), f"{start} (--redis-url)", servers_s),
            "certificate": Check(partial(_certificate, settings, members), "copy this host's folder again", servers_s),
            "clock": Check(
                partial(redis.judged, "clock", lambda facts: [judge_clock(facts)], "Redis, whose clock counts"),
                "",
                quick,
            ),
            "host": Check(partial(_host, settings), "a file system hangs: see `df`, `mount`", quick),
            "packages": Check(partial(_packages, settings), "a file system hangs", quick),
            "device": Check(partial(_device, settings), "see `nvidia-smi` and `dmesg`", _DEVICE_S),
            "artifact": Check(partial(_artifact, settings), "fetch it again, or correct --model and --blocks", full_s),
            "model": Check(partial(_model, settings, members), "", servers_s),
            "members": Check(partial(members.judged, "members", judge_members, "Redis"), "", servers_s),
            "versions": Check(partial(members.judged, "versions", judge_versions, "Redis"), "", servers_s),
            "edges": Check(
                partial(_edges, settings, members), "look at the network between hosts", servers_s + _EDGES_S
            ),
        }
        left_out = (_OF_MODEL if settings.model is None else ()) + (() if settings.secrets else ("certificate",))
        yield {name: check for name, check in checks.items() if name not in left_out}
    finally:
        await redis.close()
        await members.close()


async def _redis(settings: DoctorSettings) -> RedisFacts:
    async with _opened_redis(settings) as redis:
        return await look_at_redis(redis, settings.redis_url, settings.namespace)


async def _members(settings: DoctorSettings) -> MemberFacts:
    async with _opened_redis(settings) as redis:
        return await look_at_members(redis, settings.namespace, settings.pipeline)


def _opened_redis(settings: DoctorSettings) -> AbstractAsyncContextManager[RedisClient]:
    credentials = credentials_of(settings.secrets, settings.namespace)
    return open_redis(settings.redis_url, timeout_s=settings.timeout_s / 2, credentials=credentials)


async def _judged_redis(redis: Shared[RedisFacts]) -> Findings:
    return judge_redis(await redis.facts())


async def _broker(settings: DoctorSettings) -> Findings:
    credentials = credentials_of(settings.secrets, settings.namespace)
    facts = await look_at_broker(settings.nats_url, settings.namespace, settings.timeout_s / 2, credentials)
    return judge_broker(facts)


async def _certificate(settings: DoctorSettings, members: Shared[MemberFacts]) -> Findings:
    now = utc_now()
    own = judge_certificate(await in_daemon_thread(look_at_certificate, Path(settings.secrets or ""), now), now)
    with suppress(PipelineError):  # which has a row of its own
        return [own, *judge_ends((await members.facts()).records, now)]
    return [own]


async def _host(settings: DoctorSettings) -> Findings:
    needs = needs_of(EdgeSettings(settings.edges), Path(settings.model) if settings.model else None)
    return judge_host(needs, await in_daemon_thread(look, needs))


async def _packages(settings: DoctorSettings) -> Findings:
    extras = frozenset({"worker"} if settings.is_worker else set[str]())
    return judge_packages(await in_daemon_thread(look_at_packages, extras))


async def _device(settings: DoctorSettings) -> Findings:
    return judge_device(await look_at_device(settings.device), settings.device, is_worker=settings.is_worker)


async def _artifact(settings: DoctorSettings) -> Findings:
    directory = Path(settings.model or "")
    facts = await in_daemon_thread(
        look_at_artifact, directory, settings.blocks, vision=settings.vision, is_full=settings.full
    )
    return judge_artifact(facts)


async def _model(settings: DoctorSettings, members: Shared[MemberFacts]) -> Findings:
    try:
        manifest = await in_daemon_thread(read_manifest, Path(settings.model or ""))
    except PipelineError:
        return [unseen("model", "the artifact")]
    return await members.judged("model", lambda facts: [judge_model(facts, manifest.fingerprint)], "Redis")


async def _edges(settings: DoctorSettings, members: Shared[MemberFacts]) -> Findings:
    try:
        workers = (await members.facts()).workers
        credentials = credentials_of(settings.secrets, settings.namespace, SENDERS)
        async with Transport.open(
            settings.nats_url,
            name="doctor-edges",
            connect_timeout_s=settings.timeout_s / 2,
            credentials=credentials,
        ) as transport:
            identity = credentials.tls if credentials else None
            edges = EdgeSettings(settings.edges, is_encrypted=settings.edge_tls == "on", identity=identity)
            return judge_edges(await look_at_edges(transport, workers, edges, settings.timeout_s / 2))
    except (StateDeniedError, SubjectDeniedError, SecretsError):
        return [denied("edges", "which ways lead to workers")]
    except PipelineError:
        return [unseen("edges", "NATS or Redis")]
