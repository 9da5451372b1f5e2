"""Who has no secret, the wrong one, or another role's: what the servers say, and what our processes make of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import nats
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from broker_pipeline import subjects
from broker_pipeline.errors import StateDeniedError, SubjectDeniedError
from broker_pipeline.exit_codes import NO_PERMISSION, exit_code_of
from broker_pipeline.messages.base import WireMessage
from broker_pipeline.messages.control import CancelRequest, DrainReply, DrainRequest, Hello
from broker_pipeline.security.host_folder import new_password
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.wire.transport import Transport
from tests.broker_pipeline.security.conftest import HOST, OTHER, Guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

_FORGED = [
    f"PUB {subject} 2\r\n{{}}\r\n".encode()
    for subject in (
        "bp.main.stage.gpu-1.stage-0.i.work",
        "bp.main.conductor.c1.results",
        "bp.main.stage.gpu-1.stage-0.i.heartbeat",
        "bp.queue.jobs",
        "_INBOX.conductor.gpu-1.reply.0.1",
        "$JS.API.STREAM.DELETE.bp-jobs",
    )
] + [b"SUB > 1\r\n", b"SUB _INBOX.> 1\r\n"]
_COMMANDS = ("PING", "GET bp:main:lease", "SET bp:main:worker:stage-0 {}", "KEYS *", "FLUSHALL", "EVAL 'return 1' 0")


class _Long(WireMessage, frozen=True, kw_only=True):
    text: str


@pytest.mark.parametrize("line", _FORGED, ids=lambda line: line.split()[1].decode())
async def test_nats_takes_nothing_from_a_stranger(guarded: Guarded, line: bytes) -> None:
    host, port = guarded.nats.url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert (await reader.readline()).startswith(b"INFO ")
    writer.write(b'CONNECT {"verbose":false}\r\n' + line + b"PING\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"-ERR 'Authorization Violation'")


@pytest.mark.parametrize("command", _COMMANDS)
async def test_redis_does_nothing_for_a_stranger(guarded: Guarded, command: str) -> None:
    async with Redis.from_url(guarded.redis.url, protocol=2) as stranger:
        with pytest.raises(AuthenticationError, match="Authentication required"):
            await stranger.execute_command(*command.split(" "))
    for user, password in (("default", ""), ("stage-gpu-1", "guessed"), ("admin", "admin")):
        async with Redis.from_url(guarded.redis.url, protocol=2, username=user, password=password) as guesser:
            with pytest.raises(AuthenticationError):
                await guesser.ping()


async def test_an_unknown_key_is_refused_by_both_in_one_clear_sentence(guarded: Guarded) -> None:
    before = guarded.credentials("stage")
    after = replace(
        before, nkey_seed="SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU", redis_password=new_password()
    )
    with pytest.raises(SubjectDeniedError, match=r"refused lost.*--secrets.*`broker-pipeline secrets show`") as refused:
        async with Transport.open(guarded.nats.url, name="lost", credentials=after):
            pass
    assert exit_code_of(refused.value) == NO_PERMISSION
    with pytest.raises(StateDeniedError, match=r"Redis does not allow it: .*invalid username-password") as denied:
        async with open_redis(guarded.redis.url, credentials=after):
            pass
    assert exit_code_of(denied.value) == NO_PERMISSION


async def test_what_the_role_may_not_send_ends_the_transport_with_a_typed_error(guarded: Guarded) -> None:
    async with Transport.open(guarded.nats.url, name="gw", credentials=guarded.credentials("gateway")) as gateway:
        await gateway.publish(subjects.cancel("bp"), CancelRequest(job_id="j1"))
        root = subjects.worker_root("bp", "main", "stage", f"{HOST}_stage-0", "i")
        with pytest.raises(SubjectDeniedError, match=r"gw may not do this: .*permissions violation for publish"):
            await gateway.request(subjects.control(root), Hello(pipeline="main"), reply_type=DrainReply, timeout_s=10)
        with pytest.raises(SubjectDeniedError):
            await asyncio.wait_for(gateway.wait_failed(), 10)


async def test_what_the_role_may_not_hear_is_refused_at_once(guarded: Guarded) -> None:
    async with Transport.open(guarded.nats.url, name="spy", credentials=guarded.credentials("stage")) as spy:
        root = subjects.worker_root("bp", "main", "stage", f"{OTHER}_stage-0", "i")
        with pytest.raises(SubjectDeniedError, match=r"spy(-bulk)? may not do this"):
            async with spy.subscribe(subjects.drain(root), DrainRequest) as requests:
                await asyncio.wait_for(anext(requests), 10)


async def test_an_answer_that_is_not_this_roles_to_give_ends_nothing(guarded: Guarded) -> None:
    """Else whoever may ask a worker could end it by the name of an inbox."""
    async with (
        Transport.open(guarded.nats.url, name="stage", credentials=guarded.credentials("stage")) as stage,
        Transport.open(guarded.nats.url, name="gw", credentials=guarded.credentials("gateway")) as gateway,
    ):
        await stage.publish("_INBOX.operator.gpu-1.reply.x", Hello(pipeline="main"))
        root = subjects.worker_root("bp", "main", "stage", f"{HOST}_stage-0", "i")
        async with stage.subscribe(subjects.drain(root), DrainRequest) as requests:
            asking = asyncio.ensure_future(
                gateway.request(
                    subjects.drain(root), DrainRequest(pipeline="main"), reply_type=CancelRequest, timeout_s=10
                )
            )
            async with asyncio.timeout(10):
                await (await anext(requests)).respond(CancelRequest(job_id="j1"))
                assert (await asking).body.job_id == "j1"


async def test_large_answers_find_their_way_and_nobody_else_hears_them(guarded: Guarded) -> None:
    admin = await nats.connect(guarded.nats.admin_url)
    heard = await admin.subscribe("bulk._INBOX.>")
    await admin.flush()
    root = subjects.worker_root("bp", "main", "vision", f"{OTHER}_vision-0", "i")
    vision_of = guarded.credentials("vision", OTHER)
    async with (
        Transport.open(guarded.nats.url, name="c", credentials=guarded.credentials("conductor")) as conductor,
        Transport.open(guarded.nats.url, name="v", credentials=vision_of) as vision,
        vision.subscribe(subjects.control(root), Hello) as hellos,
    ):
        asking = asyncio.ensure_future(
            conductor.request(subjects.control(root), Hello(pipeline="main"), reply_type=_Long, timeout_s=10)
        )
        async with asyncio.timeout(10):
            await (await anext(hellos)).respond(_Long(text="x" * 100_000))
            assert len((await asking).body.text) == 100_000
            assert (await heard.next_msg(timeout=5)).subject.startswith(f"bulk._INBOX.conductor.{HOST}.reply.")
    await admin.close()
