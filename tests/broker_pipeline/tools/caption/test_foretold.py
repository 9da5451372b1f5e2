"""How long a run takes, by what a status has."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from broker_pipeline.messages.gateway import PipelineStatus, QueueStatus
from broker_pipeline.messages.status import ConductorStatus, WorkerTotals
from broker_pipeline.messages.workers import Role, WorkerRecord
from broker_pipeline.tools.caption.foretold import foretold
from tests.broker_pipeline.tools.operate.test_status_view import conductor


def worker(name: str, role: Role, device_id: str = "") -> WorkerRecord:
    return WorkerRecord(worker=name, instance=name, role=role, pipeline="main", subject=name, device_id=device_id)


WORKERS = (
    worker("s0", "stage", "gpu-a"),
    worker("s1", "stage", "gpu-b"),
    worker("v", "vision", "gpu-a"),
    worker("c", "conductor"),
)


def status(shown: ConductorStatus | None, num_waiting: int = 0) -> PipelineStatus:
    queue = QueueStatus(num_waiting=num_waiting, num_in_progress=0)
    return PipelineStatus(pipeline="main", workers=WORKERS, conductor=shown, queue=queue, jobs={})


def busy(busy_s: float, num: int) -> ConductorStatus:
    [first, *rest] = conductor().stages
    stages = (replace(first, totals=WorkerTotals(busy_s=busy_s)), *rest)
    return conductor(captions_per_s=0.0, num_finished={"succeeded": num}, stages=stages)


@pytest.mark.parametrize(
    ("shown", "num_waiting", "time", "reason"),
    [
        (conductor(captions_per_s=2.0), 0, "30:00", "the rate of the last ten seconds"),
        (conductor(captions_per_s=2.0), 3600, "1:00:00", "ten seconds, behind 3600 jobs that came before"),
        (busy(50.0, 100), 0, "30:00", "by what the busiest worker has taken for each so far"),
        (replace(busy(0.0, 0), predicted_captions_per_s=2.0), 0, "30:00", "64 tokens each; nothing is captioned yet"),
    ],
)
def test_time_and_hours_of_devices(shown: ConductorStatus, num_waiting: int, time: str, reason: str) -> None:
    text = foretold(status(shown, num_waiting), 3600)
    assert text.startswith(f"3600 answers in {time} at 2/s, ")
    assert text.endswith(f"{reason}; 1 device hours on 2 devices")


def test_what_nobody_knows_is_not_guessed() -> None:
    assert foretold(status(conductor(captions_per_s=2.0)), 0) == "2 answers/s, the rate of the last ten seconds"
    for shown in (None, busy(50.0, 0)):
        assert foretold(status(shown), 5).startswith("how long that takes nobody can say: the pipeline has captioned")
