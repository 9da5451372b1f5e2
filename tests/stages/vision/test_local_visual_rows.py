"""Rows for a stage of the same process: enqueued as they are, under the checks of those that come by wire."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec
import pytest
import structlog
import torch

from broker_pipeline.errors import (
    FingerprintMismatchError,
    PayloadTooLargeError,
    StaleAttemptError,
    StaleEpochError,
    TensorMismatchError,
    WorkerBusyError,
)
from broker_pipeline.messages.vision import PrepareRequest, RowDelivery, RowReceipt, RowTarget
from broker_pipeline.wire.transport import Received, Transport
from stages.compute.visual_injection import VisualRowNeeds
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.qwen3_vl.vision import TowerOutput
from stages.stage.envelope_checks import StageFacts
from stages.stage.visual_row_intake import VisualRowIntake
from stages.vision.visual_row_sender import LocalStage, VisualRowSender
from stages.worker.epoch_fence import EpochFence
from tests.kit.waiting import eventually

HIDDEN = 8
HERE = "local.rows"


def rows(num_rows: int = 3, width: int = HIDDEN, dtype: torch.dtype = torch.float32) -> TowerOutput:
    return TowerOutput(torch.ones(3, num_rows, width, dtype=dtype))


@dataclass
class Local:
    sender: VisualRowSender
    buffer: VisualRowBuffer
    num_copies: int = 0

    async def send(self, given: TowerOutput, *targets: RowTarget, **changes: object) -> None:
        request = PrepareRequest(
            pipeline="main",
            fingerprint="f" * 64,
            epoch=1,
            session="s",
            attempt=1,
            messages=(),
            targets=targets or (RowTarget(subject=HERE, embeds=True, levels=(0,)),),
            max_prompt_tokens=10,
            budget_s=5.0,
        )
        await self.sender.send(msgspec.structs.replace(request, **changes), given, time.monotonic() + 5)


@pytest.fixture
def local(transport: Transport) -> Local:
    facts = StageFacts(
        worker="stage-0",
        pipeline="main",
        fingerprint="f" * 64,
        subject="local.work",
        is_first=True,
        is_last=False,
        hidden_size=HIDDEN,
        vocab_size=10,
        dtype=torch.float32,
        max_batch_tokens=10,
    )
    buffer = VisualRowBuffer(max_bytes=1000, ttl_s=60)
    intake = VisualRowIntake(facts, VisualRowNeeds(embeds=True, levels=(0,)), buffer, EpochFence())

    async def to_host(given: TowerOutput) -> TowerOutput:
        found.num_copies += 1
        return TowerOutput(given.rows.clone())

    found = Local(VisualRowSender(transport, to_host, LocalStage(HERE, intake)), buffer)
    return found


async def test_rows_are_handed_over_without_a_copy(local: Local) -> None:
    given = rows()
    await local.send(given)
    kept = local.buffer.find("s", 1)
    assert kept.embeds.data_ptr() == given.embeds.data_ptr()
    assert {level: rows.data_ptr() for level, rows in kept.levels.items()} == {0: given.levels[0].data_ptr()}
    assert (local.buffer.num_bytes, local.num_copies) == (2 * 3 * HIDDEN * 4, 0)


async def test_other_stages_get_theirs_by_wire(local: Local, transport: Transport) -> None:
    away = RowTarget(subject="t.away.rows", levels=(1,))
    async with transport.subscribe(away.subject, RowDelivery) as messages:

        async def answer() -> set[str]:
            async for message in messages:
                await message.respond(RowReceipt(session="s", attempt=1))
                return set(message.tensors)
            raise AssertionError

        answering = asyncio.create_task(answer())
        await local.send(rows(), RowTarget(subject=HERE, embeds=True, levels=(0,)), away)
        assert await answering == {"deepstack.1"}
    assert (local.buffer.num_sessions, local.num_copies) == (1, 1)


async def test_what_the_wire_would_refuse_is_refused(local: Local) -> None:
    for given, changes, error in [
        (rows(), {"fingerprint": "0" * 64}, FingerprintMismatchError),
        (rows(width=9), {}, TensorMismatchError),
        (rows(dtype=torch.bfloat16), {}, TensorMismatchError),
        (rows(), {"targets": (RowTarget(subject=HERE, embeds=True),)}, TensorMismatchError),
        (rows(num_rows=100), {}, PayloadTooLargeError),
    ]:
        with pytest.raises(error):
            await local.send(given, **changes)
        assert local.buffer.num_sessions == 0
    await local.send(rows(), epoch=3, attempt=2)
    with pytest.raises(StaleEpochError):
        await local.send(rows(), epoch=2, attempt=3)
    with pytest.raises(StaleAttemptError):
        await local.send(rows(), epoch=3, attempt=1)


async def test_rows_wait_for_room(local: Local) -> None:
    await local.send(rows(14), session="other")
    with structlog.testing.capture_logs() as logs:
        sending = asyncio.create_task(local.send(rows(14)))
        await eventually(lambda: len(logs) >= 2)
        local.buffer.discard("other", 1)
        await sending
    assert local.buffer.find("s", 1).num_rows == 14


async def test_few_rows_are_on_their_way_to_a_stage_at_a_time(local: Local, transport: Transport) -> None:
    """A stage that has no room, or is slow, is not sent those of all sessions again and again."""
    away, num_sessions = RowTarget(subject="t.away.rows", levels=(1,)), 10
    asked: list[str] = []
    taken: list[str] = []
    waiting: list[Received[RowDelivery]] = []
    async with transport.subscribe(away.subject, RowDelivery) as messages, asyncio.TaskGroup() as tasks:

        async def hear() -> None:
            async for message in messages:
                waiting.append(message)
                asked.append(message.body.session)
                assert len(waiting) <= 4

        async def answer() -> None:
            """Take what there is, one at a time, but the very first, which finds no room."""
            while len(taken) < num_sessions:
                await eventually(lambda: len(waiting) == min(4, num_sessions - len(taken)))
                message, is_first = waiting.pop(0), len(asked) == 4
                busy = WorkerBusyError("no room").to_failure() if is_first else None
                taken.extend([] if is_first else [message.body.session])
                await message.respond(RowReceipt(session=message.body.session, attempt=1, failure=busy))

        hearing = tasks.create_task(hear())
        tasks.create_task(answer())
        async with asyncio.TaskGroup() as senders:
            for number in range(num_sessions):
                senders.create_task(local.send(rows(), away, session=f"s{number}"))
        hearing.cancel()
    assert sorted(asked) == sorted([*(f"s{number}" for number in range(num_sessions)), asked[0]])
