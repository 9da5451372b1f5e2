"""What a job ends with, and what is told of it, by the whole conductor."""

from __future__ import annotations

import asyncio

import pytest

from broker_pipeline import subjects
from broker_pipeline.errors import NotAnImageError
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.control import CancelRequest, WatchRequest
from broker_pipeline.messages.jobs import JobEvent
from tests.kit.acting.conductor_bench import Bench


async def test_events_tell_a_jobs_life_in_order(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    await bench.vision()
    events: list[JobEvent] = []
    subject = subjects.job_events(bench.namespace, "*")
    async with bench.transport.subscribe(subject, JobEvent) as messages:
        bench.conductor()
        await bench.status(lambda status: len(status.routes) == 1)
        job_id = new_job_id()
        request = WatchRequest(job_ids=(job_id,), for_s=10.0)
        await bench.transport.publish(subjects.watch(bench.namespace), request)
        await bench.submit(job_id=job_id)
        async for message in messages:
            events.append(message.body)
            if message.body.kind == "finished":
                break
    assert events[0].kind == "started"
    tokens = [event for event in events if event.kind == "tokens"]
    assert [event.index for event in tokens] == [sum(len(e.tokens) for e in tokens[:n]) for n in range(len(tokens))]
    assert sum(len(event.tokens) for event in tokens) == 20
    assert events[0].record is not None
    assert events[0].record.status == "running"
    assert events[-1].record == await bench.store.get(job_id)


async def test_of_a_job_that_nobody_watches_only_the_end_is_told(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 1)
    subject = subjects.job_events(bench.namespace, "*")
    async with bench.transport.subscribe(subject, JobEvent) as messages:
        past = WatchRequest(is_for_all=True, for_s=0.01)
        await bench.transport.publish(subjects.watch(bench.namespace), past)
        await asyncio.sleep(0.1)
        job_id = await bench.submit()
        event = (await anext(messages)).body
    assert (event.job_id, event.kind, event.record) == (job_id, "finished", None)
    await bench.check_right([job_id])


async def test_a_wrong_input_fails_as_what_it_is_at_once(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    vision = await bench.vision()
    vision.failures["broken"] = NotAnImageError("no image", field="messages[0].content[0]").to_failure()
    bench.conductor()
    good, bad = await bench.submit(), await bench.submit("a broken picture")
    records = await bench.wait([good, bad])
    assert [record.status for record in records] == ["succeeded", "failed"]
    assert records[1].error == vision.failures["broken"]
    assert records[1].attempt == 1
    await bench.check_empty()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field"),
    [("x" * 200, 100, "messages"), ("x" * 300, None, "messages"), ("x", 5000, "sampling.max_tokens")],
)
async def test_what_no_route_can_hold_fails_with_its_reason(
    bench: Bench, prompt: str, max_tokens: int | None, field: str
) -> None:
    await bench.stage("a", 0, 6, kv=256)
    await bench.vision()
    bench.conductor()
    good, bad = await bench.submit(), await bench.submit(prompt, max_tokens=max_tokens)
    records = await bench.wait([good, bad])
    assert [record.status for record in records] == ["succeeded", "failed"]
    assert records[1].error is not None
    assert (records[1].error.code, records[1].error.field) == ("prompt_too_long", field)


async def test_the_default_output_limit_is_cut_to_what_fits(bench: Bench) -> None:
    await bench.stage("a", 0, 6, kv=210)
    await bench.vision()
    bench.conductor()
    short, long = await bench.submit(max_tokens=None), await bench.submit("x" * 200, max_tokens=None)
    records = await bench.wait([short, long])
    num_output = [record.result.usage.num_output_tokens for record in records if record.result]
    assert num_output == [32, 10]


async def test_stop_strings_and_log_of_text(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    plain = await bench.submit()
    (record,) = await bench.wait([plain])
    assert record.result is not None
    text = record.result.text
    stopped = await bench.submit(stop=(text[3:5],))
    (record,) = await bench.wait([stopped])
    assert record.result is not None
    own = "".join(entry.text for entry in await bench.store.tokens(stopped))
    assert record.result.text == own
    assert text[3:5] not in own


async def test_a_cancelled_job_stops_with_the_text_so_far(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.02)
    await bench.vision()
    bench.conductor()
    job_id, other = await bench.submit(max_tokens=500), await bench.submit()
    await bench.progress([job_id], 5)
    await bench.store.request_cancel(job_id)
    await bench.transport.publish(subjects.cancel(bench.namespace), CancelRequest(job_id=job_id))
    (record,) = await bench.wait([job_id], timeout_s=2.0)
    assert record.status == "cancelled"
    assert record.result is not None
    assert record.result.finish_reason == "cancelled"
    entries = await bench.store.tokens(job_id)
    assert 5 <= len(entries) < 100
    assert record.result.text == "".join(entry.text for entry in entries)
    await bench.wait([other])
    await bench.check_right([other])
    await bench.check_empty(a)


async def test_tokens_that_redis_refuses_lead_to_another_attempt(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.01)
    await bench.vision()
    bench.conductor()
    job_id = await bench.submit(max_tokens=50)
    await bench.progress([job_id], 5)
    await bench.store.begin_attempt(bench.specs[job_id], bench.fingerprint)
    (record,) = await bench.wait([job_id])
    await bench.check_right([job_id])
    assert record.attempt >= 3
    await bench.check_empty(a)
