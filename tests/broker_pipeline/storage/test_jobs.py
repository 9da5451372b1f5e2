"""The job queue over a real JetStream."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from nats.js.api import ConsumerInfo

from broker_pipeline import subjects
from broker_pipeline.errors import (
    ConfigurationError,
    MalformedEnvelopeError,
    PayloadTooLargeError,
    QueueFullError,
    RequestTimeoutError,
    TransportError,
)
from broker_pipeline.messages.jobs import ChatMessage, Flow, JobSpec, TextPart
from broker_pipeline.storage.jobs import JobQueue, QueueDepth
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.servers import EmbeddedNats, find_nats_server
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.pulling import after_asking
from tests.kit.waiting import eventually


def spec(job_id: str, text: str = "hello") -> JobSpec:
    return JobSpec(job_id=job_id, created_at=1.0, messages=(ChatMessage(role="user", content=(TextPart(text=text),)),))


async def until_pulling(transport: Transport, namespace: str) -> None:
    """Wait until somebody looks for a job."""
    looks = await transport.jetstream().client.subscribe(f"$JS.API.STREAM.INFO.{subjects.job_stream(namespace)}")
    await looks.next_msg(timeout=10.0)
    await looks.unsubscribe()


async def consumer_info(transport: Transport, namespace: str) -> ConsumerInfo:
    """Return what the server knows of the only consumer."""
    [info] = await transport.jetstream().consumers_info(subjects.job_stream(namespace))
    return info


@pytest.fixture
async def queue(transport: Transport, namespace: str) -> AsyncIterator[JobQueue]:
    queue = JobQueue(transport, namespace)
    await queue.ensure()
    async with queue:
        yield queue


async def test_a_job_comes_out_as_it_went_in_and_is_gone_when_acknowledged(queue: JobQueue) -> None:
    sent = spec("a", "naïve \u2028 text")
    assert await queue.publish(sent)
    assert await queue.depth() == QueueDepth(num_waiting=1, num_in_progress=0)
    delivery = await queue.pull()
    assert delivery is not None
    assert (delivery.spec, delivery.num_deliveries) == (sent, 1)
    assert await queue.depth() == QueueDepth(num_waiting=0, num_in_progress=1)
    await delivery.ack()
    assert await queue.depth() == QueueDepth(num_waiting=0, num_in_progress=0)
    assert await queue.pull(0.1) is None


async def test_jobs_come_in_order_and_without_waiting(queue: JobQueue) -> None:
    for number in range(20):
        await queue.publish(spec(f"job-{number}"))
    started = time.monotonic()
    pulled = [await queue.pull(5.0) for _ in range(20)]
    assert [delivery.spec.job_id for delivery in pulled if delivery] == [f"job-{number}" for number in range(20)]
    assert time.monotonic() - started < 2.0


async def test_an_empty_queue_takes_the_time_it_was_given(queue: JobQueue) -> None:
    started = time.monotonic()
    assert await queue.pull(1.3) is None
    assert 1.2 < time.monotonic() - started < 2.0


async def test_a_waiting_puller_is_called(
    queue: JobQueue, transport: Transport, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_pipeline.storage.jobs._LOOK_EVERY_S", 60.0)
    pull = asyncio.create_task(queue.pull(30.0))
    await until_pulling(transport, namespace)
    started = time.monotonic()
    await queue.publish(spec("a"))
    assert await pull is not None
    assert time.monotonic() - started < 10.0


async def test_whoever_was_not_called_looks_by_itself(queue: JobQueue, transport: Transport, namespace: str) -> None:
    """A call may be lost, and other publishers do not call."""
    pull = asyncio.create_task(queue.pull(30.0))
    await until_pulling(transport, namespace)
    content = msgspec.json.encode(spec("a"))
    await transport.jetstream().publish(subjects.job_queue_subject(namespace), content)
    assert await pull is not None


async def test_one_who_waits_asks_for_little(queue: JobQueue, transport: Transport) -> None:
    for number in range(5):
        await queue.publish(replace(spec(f"job-{number}"), tenant=f"tenant-{number}"))
        assert await queue.pull(5.0) is not None
    asked = await transport.jetstream().client.subscribe("$JS.API.>")
    started = time.monotonic()
    assert await queue.pull(2.0) is None
    looks = (time.monotonic() - started) / 0.5 + 2
    assert asked.pending_msgs <= looks * (1 + 5), "the jobs in progress may come back: each is asked for in turn"


async def test_jobs_that_come_in_a_stream_share_looks(queue: JobQueue, transport: Transport) -> None:
    asked = await transport.jetstream().client.subscribe("$JS.API.STREAM.INFO.>")
    started = time.monotonic()
    pulling = asyncio.create_task(_pull_all(queue, 100))
    for number in range(100):
        await queue.publish(spec(f"job-{number}"))
    await pulling
    assert asked.pending_msgs <= (time.monotonic() - started) / 0.01 + 1


async def _pull_all(queue: JobQueue, num_jobs: int) -> None:
    for _ in range(num_jobs):
        assert await queue.pull(5.0, num_wanted=64) is not None


async def test_several_jobs_that_are_there_share_a_request(
    queue: JobQueue, transport: Transport, namespace: str
) -> None:
    await queue.publish(spec("first"))
    assert await queue.pull(5.0) is not None
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{queue._stream.name}.>"
    asked = await transport.jetstream().client.subscribe(subject)
    for number in range(20):
        await queue.publish(spec(f"job-{number}"))
    pulled = [await queue.pull(5.0, num_wanted=8) for _ in range(20)]
    assert [delivery.spec.job_id for delivery in pulled if delivery] == [f"job-{number}" for number in range(20)]
    assert asked.pending_msgs == 3
    assert not queue.has_arrived
    assert await queue.pull(0.2, num_wanted=8) is None
    await queue.publish(spec("late"))
    late = await queue.pull(5.0, num_wanted=8)
    assert late is not None
    assert late.num_deliveries == 1


async def test_it_is_said_whether_a_job_is_here_without_asking(queue: JobQueue) -> None:
    for number in range(3):
        await queue.publish(spec(f"job-{number}"))
    here = []
    for _ in range(3):
        assert await queue.pull(5.0, num_wanted=8) is not None
        await queue.depth()  # what the server had to say has come
        here.append(queue.has_arrived)
    assert here == [True, True, False]


async def test_of_many_wanted_the_first_comes_at_once_and_none_is_kept_from_others(
    nats_url: str, queue: JobQueue, transport: Transport, namespace: str
) -> None:
    pull = asyncio.create_task(queue.pull(5.0, num_wanted=8))
    await until_pulling(transport, namespace)
    started = time.monotonic()
    await queue.publish(spec("a"))
    assert await pull is not None
    assert time.monotonic() - started < 0.5
    async with Transport.open(nats_url, name="second") as other, JobQueue(other, namespace) as second:
        await queue.publish(spec("b"))
        delivery = await second.pull(3.0)
        assert delivery is not None
        assert delivery.num_deliveries == 1


async def test_publishing_twice_is_once_unless_on_purpose(queue: JobQueue) -> None:
    assert await queue.publish(spec("a"))
    assert not await queue.publish(spec("a"))
    assert await queue.publish(spec("a"), occasion="2")
    assert (await queue.depth()).num_waiting == 2


async def test_a_full_queue_refuses(transport: Transport, namespace: str) -> None:
    queue = JobQueue(transport, namespace, max_jobs=2)
    await queue.ensure()
    async with queue:
        await queue.publish(spec("a"))
        await queue.publish(spec("b"))
        with pytest.raises(QueueFullError, match="maximum messages exceeded") as refusal:
            await queue.publish(spec("c"))
        assert refusal.value.retryable
        assert refusal.value.retry_after_s > 0
        delivery = await queue.pull()
        assert delivery is not None
        await delivery.ack()
        assert await queue.publish(spec("c")), "what was refused is no duplicate"


async def test_a_queue_full_of_bytes_refuses(transport: Transport, namespace: str) -> None:
    queue = JobQueue(transport, namespace, max_bytes=4000)
    await queue.ensure()
    await queue.publish(spec("a", "x" * 2000))
    with pytest.raises(QueueFullError, match="maximum bytes exceeded"):
        await queue.publish(spec("b", "x" * 2000))


async def test_a_job_beyond_what_the_queue_takes_is_refused_and_the_connection_lives(queue: JobQueue) -> None:
    with pytest.raises(PayloadTooLargeError, match="the queue takes"):
        await queue.publish(spec("big", "x" * (queue.max_job_bytes + 1)))
    await queue.publish(spec("fits", "x" * 1_990_000))
    assert await queue.publish(spec("small"))


async def test_a_job_that_is_requeued_comes_again(queue: JobQueue) -> None:
    await queue.publish(spec("a"))
    first = await queue.pull()
    assert first is not None
    await first.retry()
    second = await queue.pull()
    assert second is not None
    assert second.num_deliveries == 2
    started = time.monotonic()
    await second.retry(delay_s=0.5)
    third = await queue.pull(3.0)
    assert third is not None
    assert third.num_deliveries == 3
    assert time.monotonic() - started > 0.45


async def test_a_terminated_job_is_gone(queue: JobQueue) -> None:
    await queue.publish(spec("a"))
    delivery = await queue.pull()
    assert delivery is not None
    await delivery.terminate()
    assert await queue.pull(0.2) is None
    assert await queue.depth() == QueueDepth(0, 0)


async def test_a_dead_pullers_job_comes_back_and_in_progress_keeps_it(
    nats_url: str, transport: Transport, namespace: str
) -> None:
    queue = JobQueue(transport, namespace, ack_wait_s=1.0)
    await queue.ensure()
    for name in ("kept", "lost"):
        await queue.publish(spec(name))
    async with Transport.open(nats_url, name="dying") as other, JobQueue(other, namespace) as doomed:
        kept, lost = await doomed.pull(), await doomed.pull()
        assert kept is not None
        assert lost is not None
        async with queue:
            back = None
            for _ in range(8):  # 2.4 s: more than two periods of ack_wait
                await kept.in_progress()
                back = back or await queue.pull(0.3)
            assert back is not None
            assert (back.spec.job_id, back.num_deliveries) == ("lost", 2)
            await kept.ack()
            await back.ack()
            assert await queue.depth() == QueueDepth(0, 0)


async def test_two_pullers_share_the_queue(nats_url: str, queue: JobQueue, namespace: str) -> None:
    async with Transport.open(nats_url, name="second") as other, JobQueue(other, namespace) as second:
        for number in range(30):
            await queue.publish(spec(f"job-{number}"))

        async def drain(puller: JobQueue) -> list[str]:
            got = []
            while delivery := await puller.pull(0.3):
                await delivery.ack()
                got.append(delivery.spec.job_id)
            return got

        one, two = await asyncio.gather(drain(queue), drain(second))
        assert sorted(one + two) == sorted(f"job-{number}" for number in range(30))


async def test_a_cancelled_pull_loses_no_job(queue: JobQueue) -> None:
    for number in range(20):
        pull = asyncio.create_task(queue.pull(5.0))
        await asyncio.sleep(0.001 * (number % 3))
        await queue.publish(spec(f"job-{number}"))
        await asyncio.sleep(0.0002 * number)
        pull.cancel()
        (result,) = await asyncio.gather(pull, return_exceptions=True)
        if isinstance(result, asyncio.CancelledError):
            result = await queue.pull(2.0)
        assert result is not None
        assert result.num_deliveries == 1  # type: ignore[union-attr]
        await result.ack()  # type: ignore[union-attr]


async def test_closing_puts_back_what_nobody_took(transport: Transport, namespace: str) -> None:
    queue = JobQueue(transport, namespace, ack_wait_s=30.0)
    await queue.ensure()
    for job_id in "ab":
        await queue.publish(spec(job_id))
    async with queue:
        assert await queue.pull(5.0, num_wanted=2) is not None
        await eventually(lambda: queue.has_arrived)
    async with JobQueue(transport, namespace) as next_queue:
        delivery = await next_queue.pull(3.0)
        assert delivery is not None
        assert (delivery.spec.job_id, delivery.num_deliveries) == ("b", 2)


async def test_closing_puts_back_what_a_cancelled_pull_has_asked_for(
    transport: Transport, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = JobQueue(transport, namespace, ack_wait_s=30.0)
    await queue.ensure()
    await queue.publish(spec("a"))
    async with queue:
        pull = asyncio.create_task(queue.pull(5.0))
        after_asking(monkeypatch, pull.cancel)
        with pytest.raises(asyncio.CancelledError):
            await pull
    monkeypatch.undo()
    async with JobQueue(transport, namespace) as next_queue:
        delivery = await next_queue.pull(3.0)
        assert delivery is not None
        assert (delivery.spec.job_id, delivery.num_deliveries) == ("a", 2)


async def test_what_is_no_job_is_told_and_dropped(transport: Transport, namespace: str) -> None:
    told: list[tuple[str, MalformedEnvelopeError]] = []

    async def on_unreadable(job_id: str, error: MalformedEnvelopeError) -> None:
        told.append((job_id, error))

    queue = JobQueue(transport, namespace, on_unreadable=on_unreadable)
    await queue.ensure()
    jetstream = transport.jetstream()
    for number, content in enumerate([b"{", b'{"job_id":"x","created_at":0,"messages":[]}', b"\xff\xfe", b""]):
        await jetstream.publish(
            subjects.job_queue_subject(namespace), content, headers={"Nats-Msg-Id": f"bad-{number}"}
        )
    await queue.publish(spec("good"))
    async with queue:
        delivery = await queue.pull(3.0)
        assert delivery is not None
        assert delivery.spec.job_id == "good"
        assert [job_id for job_id, _ in told] == [f"bad-{number}" for number in range(4)]
        assert "messages" in str(told[1][1])
        assert await queue.depth() == QueueDepth(num_waiting=0, num_in_progress=1)


async def test_ensure_again_keeps_jobs_and_changes_limits(transport: Transport, namespace: str) -> None:
    await JobQueue(transport, namespace, max_jobs=1).ensure()
    queue = JobQueue(transport, namespace, max_jobs=5, ack_wait_s=7.0)
    await queue.publish(spec("a"))
    await queue.ensure(update=False)
    with pytest.raises(QueueFullError):
        await queue.publish(spec("b"))
    await queue.ensure()
    await queue.publish(spec("b"))
    async with queue:
        assert await queue.pull() is not None
    info = await consumer_info(transport, namespace)
    assert (info.config.ack_wait, await queue.depth()) == (7.0, QueueDepth(num_waiting=1, num_in_progress=1))


async def test_how_long_a_delivery_may_take_is_for_those_who_pull(transport: Transport, namespace: str) -> None:
    puller, publisher = JobQueue(transport, namespace, ack_wait_s=3.0), JobQueue(transport, namespace)
    await puller.ensure(update=False)
    await publisher.publish(spec("a"))
    async with puller:
        assert await puller.pull() is not None
    await publisher.ensure()
    assert (await consumer_info(transport, namespace)).config.ack_wait == 3.0


async def test_a_foreign_stream_of_that_name_is_refused(transport: Transport, namespace: str) -> None:
    await transport.jetstream().add_stream(name=subjects.job_stream(namespace), subjects=[f"{namespace}.else"])
    with pytest.raises(ConfigurationError, match="namespace"):
        await JobQueue(transport, namespace).ensure()


async def test_more_room_than_there_is_says_so(transport: Transport, namespace: str) -> None:
    with pytest.raises(QueueFullError, match="lower the limit"):
        await JobQueue(transport, namespace, max_bytes=10**18).ensure()


async def test_a_queue_that_nobody_made_is_made_by_who_pulls(transport: Transport, namespace: str) -> None:
    async with JobQueue(transport, namespace) as queue:
        assert await queue.pull(0.1) is None
    assert await queue.depth() == QueueDepth(num_waiting=0, num_in_progress=0)


async def test_a_queue_for_which_there_is_no_room_is_away(transport: Transport, namespace: str) -> None:
    async with JobQueue(transport, namespace, max_bytes=2**60) as queue:
        with pytest.raises(TransportError, match="has no room"):
            await queue.pull(0.1)


async def test_jobs_of_an_earlier_release_are_run(transport: Transport, namespace: str) -> None:
    """It had one subject and one consumer; what that had delivered is delivered again."""
    jetstream, stream, subject = transport.jetstream(), subjects.job_stream(namespace), f"{namespace}.queue.jobs"
    await jetstream.add_stream(name=stream, subjects=[subject], retention="workqueue", duplicate_window=120.0)
    old = await jetstream.add_consumer(stream, durable_name=f"{namespace}-conductors-17", ack_policy="explicit")
    await jetstream.publish(
        subject,
        b'{"job_id":"old","created_at":1.0,"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}',
    )
    async with JobQueue(transport, namespace) as queue:
        await queue.ensure()
        await queue.publish(replace(spec("new"), tenant="alice", priority="batch"))
        pulled = [await queue.pull(5.0) for _ in range(2)]
        assert [delivery.spec.job_id for delivery in pulled if delivery] == ["old", "new"]
    names = {each.name for each in await jetstream.consumers_info(stream)}
    assert len(names) == 2
    assert old.name not in names


async def test_conductors_of_an_earlier_release_can_run_what_is_queued(transport: Transport, namespace: str) -> None:
    """They refuse a field that they do not know; the subject says the priority."""
    queue, jetstream = JobQueue(transport, namespace), transport.jetstream()
    await queue.ensure()
    await queue.publish(replace(spec("a"), tenant="alice", priority="batch"))
    message = await jetstream.get_msg(subjects.job_stream(namespace), 1)
    assert b"priority" not in (message.data or b"")
    async with queue:
        delivery = await queue.pull(5.0)
    assert delivery is not None
    assert delivery.spec.flow == Flow("batch", "alice")


async def test_each_flow_is_a_line_of_its_own(queue: JobQueue) -> None:
    """Behind a tenant's many jobs wait its own only."""
    for number in range(40):
        await queue.publish(replace(spec(f"large-{number}"), tenant="large"))
    for number in range(3):
        await queue.publish(replace(spec(f"small-{number}"), tenant="small"))
    first = [await queue.pull(5.0, num_wanted=8) for _ in range(8)]
    got = [delivery.spec.job_id for delivery in first if delivery]
    assert sorted(got) == [*(f"large-{number}" for number in range(5)), *(f"small-{number}" for number in range(3))]


async def test_what_a_plan_finds_in_progress_is_made_up_for_by_the_others(queue: JobQueue) -> None:
    """The server counts jobs that are delivered among those that there are."""
    for number in range(8):
        await queue.publish(replace(spec(f"held-{number}"), tenant="a"))
    held = [await queue.pull(5.0, num_wanted=8) for _ in range(8)]
    for number in range(8):
        await queue.publish(replace(spec(f"next-{number}"), tenant="b"))
    assert await queue.pull(5.0, num_wanted=8) is not None
    await eventually(lambda: queue._puller._arrived.qsize() == 7)
    assert all(held)


async def test_jobs_outlive_a_killed_server(own_nats: EmbeddedNats, namespace: str) -> None:
    """A server that is killed may forget which jobs were out, not which there are."""
    async with Transport.open(own_nats.url, name="test") as transport, JobQueue(transport, namespace) as queue:
        await queue.ensure()
        for name in ("taken", "waiting"):
            await queue.publish(spec(name))
        taken = await queue.pull()
        assert taken is not None
        own_nats.kill()
        await own_nats.process.wait()
        while transport.is_connected:  # noqa: ASYNC110 - the test asks for nothing that tells
            await asyncio.sleep(0.01)
        with pytest.raises(TransportError):
            await queue.publish(spec("refused"))
        with pytest.raises(TransportError):
            await taken.ack(timeout_s=0.5)
        await own_nats.restart()
        await transport.link.small.barrier()
        with suppress(RequestTimeoutError):  # not confirmed where the server has forgotten that the job was out
            await taken.ack(timeout_s=0.5)
        seen = set()
        while delivery := await queue.pull(1.0):
            seen.add(delivery.spec.job_id)
            await delivery.ack()
        assert "waiting" in seen
        assert await queue.depth() == QueueDepth(0, 0)


async def test_a_server_without_jetstream_says_so(tmp_path: Path, namespace: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [str(find_nats_server()), "-a", "127.0.0.1", "-p", str(port)]
    server = await ChildProcess.spawn("bare", argv, log_path=tmp_path / "log")
    try:
        async with Transport.open(f"nats://127.0.0.1:{port}", name="test") as transport:
            with pytest.raises(TransportError, match=r"JetStream"):
                await JobQueue(transport, namespace).ensure()
            with pytest.raises(TransportError, match=r"JetStream"):
                await JobQueue(transport, namespace).publish(spec("a"))
    finally:
        await server.stop(5.0)
