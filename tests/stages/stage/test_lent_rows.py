"""Visual rows that come by an edge: kept in memory of the stage's own, so that the sender has its ring back at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from broker_pipeline import subjects
from broker_pipeline.messages.vision import RowDelivery, RowReceipt
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.transport import Transport
from stages.compute.visual_injection import VisualRowNeeds
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.stage.envelope_checks import StageFacts
from stages.stage.visual_row_intake import EMBEDS, VisualRowIntake
from stages.worker.epoch_fence import EpochFence
from stages.worker.tensors import to_wire
from tests.kit.waiting import eventually

HIDDEN, NUM_ROWS = 64, 1000
RING_BYTES = 2**20


async def test_rows_that_are_kept_leave_the_ring_free(nats_url: str, namespace: str, tmp_path: Path) -> None:
    root = subjects.worker_root(namespace, "main", "stage", "stage", "1")
    facts = StageFacts("stage", "main", "f", subjects.work(root), True, False, HIDDEN, 10, torch.float32, 64)
    buffer = VisualRowBuffer(2**26, 60.0)
    intake = VisualRowIntake(facts, VisualRowNeeds(embeds=True, levels=()), buffer, EpochFence())
    settings = EdgeSettings("shm", RING_BYTES, shm_directory=tmp_path / "shm")
    sent: list[torch.Tensor] = []
    async with (
        Transport.open(nats_url, name="vision") as vision,
        Transport.open(nats_url, name="stage") as stage,
        stage.subscribe(subjects.rows(root), RowDelivery) as deliveries,
        stage.use_edges(root, settings),
        vision.use_edges(subjects.worker_root(namespace, "main", "vision", "vision", "1"), settings),
        asyncio.TaskGroup() as tasks,
    ):
        serving = tasks.create_task(intake.serve(deliveries))

        async def deliver() -> bool:
            """Send one more session's rows, a quarter of the ring, and say whether they took it."""
            rows = torch.randn(NUM_ROWS, HIDDEN)
            delivery = RowDelivery(pipeline="main", fingerprint="f", epoch=1, session=f"s{len(sent)}", attempt=1)
            sent.append(rows)
            answer = await vision.request(
                subjects.rows(root), delivery, {EMBEDS: to_wire(rows)}, reply_type=RowReceipt, timeout_s=5
            )
            assert answer.body.failure is None
            return "shm" in vision.counts.carried

        await eventually(deliver)
        before = vision.counts.carried
        for _ in range(20):
            await deliver()
        assert vision.counts.carried["shm"].num_messages == before["shm"].num_messages + 20
        assert vision.counts.carried.get("nats") == before.get("nats"), "the ring was never full"
        for index, rows in enumerate(sent):
            embeds = buffer.find(f"s{index}", 1).embeds
            assert embeds is not None
            assert torch.equal(embeds, rows)
        serving.cancel()
