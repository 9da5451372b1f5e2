"""Stage workers on a real broker: what the conductor and the vision worker see of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from broker_pipeline import subjects
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import StaleEpochError
from broker_pipeline.messages.activation import (
    Envelope,
    MicrobatchResult,
    Segment,
    SessionClose,
    SessionOpen,
    VisualSpan,
)
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.vision import RowDelivery, RowReceipt
from broker_pipeline.wire.transport import Subscription, Transport
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.compute.generate import Request, WholeModel
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.qwen3_vl.positions import VisualGroup, plan_positions
from stages.qwen3_vl.vision import TowerOutput
from stages.stage.engine import StageEngine
from stages.stage.visual_row_intake import VisualRowIntake, level_name
from stages.stage.worker import StageLimits, StageWorker
from stages.worker.compute_thread import ComputeThread
from stages.worker.epoch_fence import EpochFence
from stages.worker.presence import Presence, new_record
from stages.worker.tensors import to_wire
from tests.kit.models.tiny_stages import FINGERPRINT, PIPELINE, facts_of, tiny_stage

PROMPT = (5, 9, 14, 200, 33)


class Stage:
    """One worker and its parts."""

    def __init__(self, transport: Transport, namespace: str, start: int, stop: int, limits: StageLimits) -> None:
        self.visual_rows, self.fence, self.thread = VisualRowBuffer(2**16, 60), EpochFence(), ComputeThread()
        compute = tiny_stage(start, stop, visual_rows=self.visual_rows)
        name = f"stage-{start}-{stop}"
        common = CommonSettings(namespace=namespace, pipeline=PIPELINE)
        record = new_record("stage", name, common, fingerprint=FINGERPRINT, device="cpu", dtype="float32")
        self.presence = Presence(record)
        self.root = record.subject
        facts = replace(facts_of(compute, name), subject=subjects.work(record.subject))
        self.engine = StageEngine(compute, facts, self.fence, self.visual_rows)
        intake = VisualRowIntake(facts, compute.visual_row_needs, self.visual_rows, self.fence)
        self.worker = StageWorker(transport, self.engine, self.thread, intake, self.fence, self.presence, limits)


class Route:
    """Two stages behind a broker, and a conductor's end of the conversation."""

    def __init__(self, transport: Transport, stages: Sequence[Stage], results: Subscription[MicrobatchResult]) -> None:
        self.transport = transport
        self.stages = stages
        self.results = results
        self.number = 0

    async def send(self, tensors: dict[str, WireTensor] | None = None, **changes: Any) -> None:
        self.number += 1
        envelope = Envelope(
            pipeline=PIPELINE,
            fingerprint=FINGERPRINT,
            epoch=1,
            microbatch=self.number,
            route=tuple(subjects.work(stage.root) for stage in self.stages),
            reply=self.results.subject,
            budget_s=20.0,
        )
        envelope = msgspec.structs.replace(envelope, **changes)
        await self.transport.publish(envelope.route[0], envelope, tensors or {})

    async def answer(self) -> MicrobatchResult:
        async with asyncio.timeout(20):
            return (await anext(self.results)).body

    async def ask(self, tensors: dict[str, WireTensor] | None = None, **changes: Any) -> MicrobatchResult:
        await self.send(tensors, **changes)
        return await self.answer()

    async def deliver(self, stage: int, session: str, tensors: dict[str, WireTensor], **changes: Any) -> RowReceipt:
        delivery = RowDelivery(pipeline=PIPELINE, fingerprint=FINGERPRINT, epoch=1, session=session, attempt=1)
        delivery = msgspec.structs.replace(delivery, **changes)
        received = await self.transport.request(
            subjects.rows(self.stages[stage].root), delivery, tensors, reply_type=RowReceipt, timeout_s=10
        )
        return received.body


@asynccontextmanager
async def running(transport: Transport, namespace: str, limits: StageLimits | None = None) -> AsyncIterator[Route]:
    stages = [Stage(transport, namespace, start, stop, limits or StageLimits()) for start, stop in [(0, 1), (1, 6)]]
    results = subjects.results(namespace, PIPELINE, "c")
    async with transport.subscribe(results, MicrobatchResult) as answers, asyncio.TaskGroup() as tasks:
        serving = []
        for stage in stages:
            subscribed = asyncio.Event()
            serving.append(tasks.create_task(stage.worker.serve(subscribed)))
            await subscribed.wait()
        yield Route(transport, stages, answers)
        for task in serving:
            task.cancel()
    for stage in stages:
        stage.thread.close()


def prompt(session: str, **changes: Any) -> dict[str, Any]:
    segment = Segment(session=session, attempt=1, start=0, count=5, wants_token=True)
    opening = SessionOpen(
        session=session, attempt=1, num_kv_tokens=12, num_prompt_tokens=5, sampling=SamplingSettings()
    )
    return {"segments": (msgspec.structs.replace(segment, **changes),), "opens": (opening,)}


def inputs(tokens: Sequence[int], positions: torch.Tensor | None = None) -> dict[str, WireTensor]:
    positions = plan_positions(len(tokens), ()).positions if positions is None else positions
    return {"token_ids": to_wire(torch.tensor(tokens, dtype=torch.int32)), "positions": to_wire(positions)}


def expected(max_tokens: int = 1, **request: Any) -> list[int]:
    whole = Request("r", PROMPT, max_tokens=max_tokens, **request)
    return [token.token_id for token in WholeModel([tiny_stage(0, 6)]).generate([whole])[0]]


async def test_envelopes_pass_from_stage_to_stage_to_conductor(transport: Transport, namespace: str) -> None:
    async with running(transport, namespace) as route:
        result = await route.ask(inputs(PROMPT), **prompt("a"))
        assert [token.token_id for token in result.tokens] == expected()
        assert [timing.worker for timing in result.timings] == ["stage-0-1", "stage-1-6"]
        beat = route.stages[1].worker.heartbeat()
        assert (beat.num_sessions, beat.kv_used_tokens, beat.num_microbatches, beat.num_tokens) == (1, 12, 1, 5)
        assert beat.busy_s > 0
        await route.ask(closes=(SessionClose(session="a", attempt=1),))
        for stage in route.stages:
            await asyncio.wait_for(stage.worker.wait_idle(), 5)


async def test_rows_reach_the_layers_that_own_them_and_change_the_result(transport: Transport, namespace: str) -> None:
    groups = (VisualGroup(1, 1, 2, 0),)
    rows = TowerOutput(torch.randn(4, 2, 64))
    plan = plan_positions(5, groups)
    async with running(transport, namespace) as route:
        first = {"embeds": to_wire(rows.embeds), "deepstack.0": to_wire(rows.levels[0])}
        second = {level_name(level): to_wire(rows.levels[level]) for level in (1, 2)}
        assert (await route.deliver(0, "a", first)).failure is None
        assert (await route.deliver(1, "a", second)).failure is None
        visual = (VisualSpan(offset=1, count=2, row=0),)
        result = await route.ask(inputs(PROMPT, plan.positions), **prompt("a", visual=visual))
        assert [token.token_id for token in result.tokens] == expected(groups=groups, visuals=rows)
        assert [stage.visual_rows.num_sessions for stage in route.stages] == [0, 0], "used rows are freed"


async def test_rows_that_do_not_fit_are_refused_with_a_reason(transport: Transport, namespace: str) -> None:
    async with running(transport, namespace) as route:
        wide = {"embeds": to_wire(torch.zeros(300, 64)), "deepstack.0": to_wire(torch.zeros(300, 64))}
        other = {"embeds": to_wire(torch.zeros(2, 64))}
        narrow = {"embeds": to_wire(torch.zeros(2, 63)), "deepstack.0": to_wire(torch.zeros(2, 64))}
        good = {"embeds": to_wire(torch.zeros(2, 64)), "deepstack.0": to_wire(torch.zeros(2, 64))}
        for tensors, changes, code in [
            (wide, {}, "payload_too_large"),
            (other, {}, "tensor_mismatch"),
            (narrow, {}, "tensor_mismatch"),
            (good, {"fingerprint": "0" * 64}, "fingerprint_mismatch"),
            (good, {"epoch": 0}, "stale_epoch"),
        ]:
            if "epoch" in changes:
                route.stages[0].fence.admit(1)
            receipt = await route.deliver(0, "a", tensors, **changes)
            assert receipt.failure is not None
            assert receipt.failure.code == code
        assert (await route.deliver(0, "a", good)).failure is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint_mismatch"),
        ({"pipeline": "other"}, "contract"),
        ({"budget_s": 0.0}, "deadline_exceeded"),
    ],
)
async def test_an_envelope_that_cannot_be_computed_is_answered(
    transport: Transport, namespace: str, changes: dict[str, Any], code: str
) -> None:
    async with running(transport, namespace) as route:
        result = await route.ask(inputs(PROMPT), **prompt("a"), **changes)
        assert result.failure is not None
        assert result.failure.code == code
        assert result.worker == "stage-0-1"
        good = await route.ask(inputs(PROMPT), **prompt("b"))
        assert good.failure is None
        assert len(good.tokens) == 1


async def test_a_probe_is_answered_once_both_connections_are_back(
    transport: Transport, nats_url: str, namespace: str
) -> None:
    """Small messages came over the one, and large ones were lost where the other was not back yet."""
    async with (
        Transport.open(nats_url, name="stages") as own,
        transport.subscribe(subjects.results(namespace, PIPELINE, "c"), MicrobatchResult) as answers,
        running(own, namespace) as route,
    ):
        asking = Route(transport, route.stages[1:], answers)
        assert (await asking.ask()).failure is None
        own.link.bulk._state.connected.clear()
        await asking.send()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(answers)
        own.link.bulk._state.connected.set()
        assert (await asking.answer()).microbatch == 2


async def test_an_older_conductor_is_fenced_off_by_envelope_or_hello(transport: Transport, namespace: str) -> None:
    async with running(transport, namespace) as route:
        await route.ask(inputs(PROMPT), **prompt("a"))
        control = subjects.control(route.stages[0].root)
        reply = await transport.request(control, Hello(pipeline=PIPELINE, epoch=5), reply_type=HelloReply, timeout_s=5)
        assert reply.body.record == route.stages[0].presence.record()
        assert route.stages[0].engine.sessions.num_open == 0
        late = await route.ask(inputs(PROMPT), **prompt("b"))
        assert late.failure is not None
        assert late.failure.code == "stale_epoch"
        with pytest.raises(StaleEpochError):
            await transport.request(control, Hello(pipeline=PIPELINE, epoch=4), reply_type=HelloReply, timeout_s=5)
        new = await route.ask(inputs(PROMPT), **prompt("b"), epoch=6)
        assert [token.token_id for token in new.tokens] == expected()


async def test_a_full_stage_refuses_and_goes_on(transport: Transport, namespace: str) -> None:
    async with running(transport, namespace, StageLimits(max_envelopes=2)) as route:
        gate = threading.Event()
        blocked = route.stages[0].thread.submit(gate.wait)
        for number in range(12):
            await route.send(inputs(PROMPT), **prompt(f"s{number}"))
        refused = await route.answer()
        assert refused.failure is not None
        assert (refused.failure.code, refused.failure.retryable) == ("worker_busy", True)
        gate.set()
        await blocked
        others = [await route.answer() for _ in range(11)]
        done = [result for result in others if result.failure is None]
        assert len(done) >= 3
        assert all([token.token_id for token in result.tokens] == expected() for result in done)
        assert {result.failure.code for result in others if result.failure} == {"worker_busy"}


async def test_the_next_microbatch_is_checked_while_one_is_computed(transport: Transport, namespace: str) -> None:
    async with running(transport, namespace) as route:
        gate = threading.Event()
        blocked = route.stages[0].thread.submit(gate.wait)
        await route.send(inputs(PROMPT), **prompt("a"))
        refused = await route.ask(inputs(PROMPT[:4]), **prompt("b"))
        assert refused.failure is not None
        assert refused.failure.code == "tensor_mismatch"
        gate.set()
        await blocked
        assert (await route.answer()).failure is None
