"""Every cell of the table of rights, tried on real servers: what is allowed, and what is not."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import nats
import pytest
from nats.aio.client import Client
from redis.exceptions import NoPermissionError

from broker_pipeline import subjects
from broker_pipeline.errors import StateDeniedError
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.security.key_table import KEYS
from broker_pipeline.security.roles import ROLES, WORKERS, Role, Scope
from broker_pipeline.security.server_configs import rights_of
from broker_pipeline.security.subject_table import SUBJECTS, SubjectRow
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from tests.broker_pipeline.security.conftest import HOST, NAMESPACE, OTHER, Guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

_VIOLATION = re.compile(r'violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)
_LISTING = (("KEYS", "*"), ("SCAN", "0"), ("RANDOMKEY",), ("DBSIZE",))
_RULING = (
    *(("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("MONITOR",), ("SHUTDOWN",), ("CLIENT", "LIST")),
    *(("SUBSCRIBE", "x"), ("PUBLISH", "x", "y"), ("EVAL", "return 1", "0"), ("SAVE",)),
    *(("REPLICAOF", "h", "1"), ("MIGRATE", "h", "1", "k", "0", "1"), ("SWAPDB", "0", "1")),
)


class Tried:
    """A client of one role, and what the server has refused it (nats-py tells it in small letters)."""

    def __init__(self) -> None:
        self.client = Client()
        self.denied: dict[str, set[str]] = {"publish": set(), "subscription": set()}

    async def _note(self, error: Exception) -> None:
        found = _VIOLATION.search(str(error))
        assert found, error
        self.denied[found[1].lower()].add(found[2])

    @classmethod
    async def connect(cls, guarded: Guarded, role: Role, host: str = HOST) -> Tried:
        tried = cls()
        options = guarded.credentials(role, host).nats_options
        await tried.client.connect(guarded.nats.url, error_cb=tried._note, **options)
        return tried

    async def publish(self, names: set[str]) -> set[str]:
        """Return those of these subjects that this role may not publish to."""
        for name in names:
            await self.client.publish(name, b"forged")
        await self._settle()
        return {name for name in names if name.lower() in self.denied["publish"]}

    async def subscribe(self, names: set[str]) -> set[str]:
        for name in names:
            await self.client.subscribe(name)
        await self._settle()
        return {name for name in names if name.lower() in self.denied["subscription"]}

    async def _settle(self) -> None:
        for _ in range(2):  # nats-py writes PING ahead of what is queued
            await self.client.flush()


def _example(pattern: str) -> str:
    """Return one subject, or key, that a pattern of the table matches."""
    return pattern.replace(">", "any").replace("*", "any")


def _names(row: SubjectRow, host: str) -> set[str]:
    names = {_example(name) for name in row.names(Scope(NAMESPACE, host))}
    return names | {subjects.bulk(name) for name in names if row.is_message}


def _sent(row: SubjectRow) -> set[str]:
    """What those of `HOST` may send who may send: to all hosts, unless it is as the own one."""
    return _names(row, HOST) | (set() if row.is_of_sender else _names(row, OTHER))


def _heard(row: SubjectRow) -> set[str]:
    """What those of `HOST` may hear who may hear: what is for it, unless it is what any host sends of itself."""
    return _names(row, HOST) | (_names(row, OTHER) if row.is_of_sender else set())


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_publishes_what_its_column_says_and_nothing_else(guarded: Guarded, role: Role) -> None:
    tried = await Tried.connect(guarded, role)
    try:
        everything = {name for row in SUBJECTS for host in (HOST, OTHER) for name in _names(row, host)}
        allowed = {name for row in SUBJECTS if role in row.publish for name in _sent(row)}
        assert await tried.publish(everything) == everything - allowed
    finally:
        await tried.client.close()


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_hears_what_its_column_says_of_its_own_host_and_nothing_else(
    guarded: Guarded, role: Role
) -> None:
    tried = await Tried.connect(guarded, role)
    try:
        everything = {name for row in SUBJECTS for host in (HOST, OTHER) for name in _names(row, host)}
        allowed = {name for row in SUBJECTS if role in row.subscribe for name in _heard(row)}
        wide = {">", "bulk.>", f"{NAMESPACE}.>", "_INBOX.>", "$JS.>", f"_INBOX.{role}.{OTHER}.x", "$SYS.>"}
        assert await tried.subscribe(everything | wide) == (everything | wide) - allowed
    finally:
        await tried.client.close()


async def test_what_may_be_published_arrives(guarded: Guarded) -> None:
    heard: set[str] = set()
    admin = await nats.connect(guarded.nats.admin_url)

    async def note(message: nats.aio.msg.Msg) -> None:
        heard.add(message.subject)

    await admin.subscribe("bp.>", cb=note)
    await admin.subscribe("bulk.bp.>", cb=note)
    await admin.flush()
    sent: set[str] = set()
    for role in ROLES:
        tried = await Tried.connect(guarded, role)
        ours = {name for row in SUBJECTS if role in row.publish for name in _sent(row)}
        ours = {name for name in ours if name.startswith(("bp.", "bulk.bp."))}
        assert not await tried.publish(ours)
        sent |= ours
        await tried.client.close()
    await admin.flush()
    await admin.flush()
    await admin.close()
    assert sent
    assert heard == sent


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_reads_and_writes_the_keys_of_its_column_and_no_others(guarded: Guarded, role: Role) -> None:
    rights = rights_of(role, HOST, NAMESPACE)
    keys = {_example(name) for row in KEYS for host in (HOST, OTHER) for name in row.names(Scope(NAMESPACE, host))}
    keys |= {"other:job:1", "bp2:job:1", "x"}
    async with open_redis(guarded.redis.url, credentials=guarded.credentials(role)) as redis:
        for key in keys:
            may_write = any(fnmatchcase(key, pattern) for pattern in rights.write)
            may_read = may_write or any(fnmatchcase(key, pattern) for pattern in rights.read)
            assert await _is_allowed(redis, "EXISTS", key) == may_read, (role, key)
            assert await _is_allowed(redis, "DEL", key) == may_write, (role, key)
            may_add = any(fnmatchcase(key, pattern) for pattern in rights.add)
            can_add = may_add or (may_write and role not in WORKERS)
            assert await _is_allowed(redis, "SADD", key, "x") == can_add, (role, key)


async def test_no_role_lists_keys_or_rules_the_server(guarded: Guarded) -> None:
    for role in ROLES:
        async with open_redis(guarded.redis.url, credentials=guarded.credentials(role)) as redis:
            for command in (*_LISTING, *_RULING):
                assert not await _is_allowed(redis, *command), (role, command)


@pytest.mark.parametrize("role", WORKERS)
async def test_a_worker_runs_no_script(guarded: Guarded, role: Role) -> None:
    """One that never ends would stop Redis for all, and scripts that are loaded are never forgotten."""
    endless, none = "while true do end", "0" * 40
    commands = (
        *(("SCRIPT", "LOAD", endless), ("EVAL", endless, "0"), ("EVALSHA", none, "0"), ("SCRIPT", "FLUSH")),
        *(("FUNCTION", "LOAD", f"#!lua name=a\nredis.register_function('a', function() {endless} end)"),),
        ("FCALL", "a", "0"),
    )
    async with open_redis(guarded.redis.url, credentials=guarded.credentials(role)) as redis:
        for command in commands:
            assert not await _is_allowed(redis, *command), command


async def test_a_worker_takes_no_name_of_another_host(guarded: Guarded) -> None:
    """Also not where the other host's name begins with its own."""
    async with open_redis(guarded.redis.url, credentials=guarded.credentials("stage")) as redis:
        registry = WorkerRegistry(redis, NAMESPACE, "main")
        await registry.register(_record(f"{HOST}_stage-0"))
        for name in (f"{OTHER}_stage-0", "stage-0", HOST):
            with pytest.raises(StateDeniedError, match="Redis does not allow it"):
                await registry.register(_record(name))
        await registry.release(_record(f"{HOST}_stage-0"))


# What the table has to say, in words of its own.


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        ("vision", "bp.main.conductor.c1.results.0"),  # forges a result
        ("gateway", "bp.main.conductor.c1.results.0"),
        ("gateway", "bp.main.stage.gpu-1.stage-0.i.work"),  # speaks to stages
        ("gateway", "bp.main.stage.gpu-1.stage-0.i.control"),
        ("stage", "bp.main.vision.gpu-1.vision-0.i.work"),
        ("stage", "bp.queue.jobs"),
        ("vision", "bp.events.j1.finished"),
        ("stage", "bp.events.j1.finished"),
        ("stage", "$JS.API.DIRECT.GET.bp-media-0"),  # reads a picture
        ("vision", "$JS.API.STREAM.NAMES"),
        ("vision", "$JS.API.CONSUMER.CREATE.bp-media-0"),  # listens to all pictures
        ("vision", "$JS.API.STREAM.MSG.GET.bp-media-0"),
        ("stage", "_INBOX.conductor.gpu-1.a.b"),  # JetStream's answers
        ("stage", "$JS.ACK.bp-jobs.c.1.1.1.1.1"),
        ("operator", "bp.main.stage.gpu-1.stage-0.i.drain"),
        ("stage", f"bp.main.stage.{OTHER}.stage-0.i.heartbeat"),  # says that another host's worker lives
        ("vision", f"bp.main.vision.{OTHER}.vision-0.i.heartbeat"),
        ("conductor", f"bp.main.stage.{HOST}.stage-0.i.heartbeat"),
    ],
)
async def test_nobody_publishes(guarded: Guarded, role: Role, subject: str) -> None:
    tried = await Tried.connect(guarded, role)
    denied = await tried.publish({subject, f"bulk.{subject}"})
    await tried.client.close()
    assert denied == {subject, f"bulk.{subject}"}


async def _is_allowed(redis, *command: str) -> bool:
    try:
        await redis.execute_command(*command)
    except NoPermissionError:
        return False
    return True


def _record(name: str) -> WorkerRecord:
    root = subjects.worker_root(NAMESPACE, "main", "stage", name, "i1")
    return WorkerRecord(worker=name, instance="i1", role="stage", pipeline="main", subject=root)
