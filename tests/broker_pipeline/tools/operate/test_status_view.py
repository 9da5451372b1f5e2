import io
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from rich.console import Console

from broker_pipeline.messages.gateway import PipelineStatus, QueueStatus
from broker_pipeline.messages.merged_status import merged
from broker_pipeline.messages.status import (
    ConductorStatus,
    HedgeCounts,
    KeptCounts,
    RefusedWorker,
    RouteStatus,
    SessionLimits,
    StageStatus,
    VisionStatus,
)
from broker_pipeline.messages.workers import BlockRange, CarriedCounts, Role, TransportCounts, WorkerRecord
from broker_pipeline.tools.operate.status_view import describe_workers, hints, render_status

FRONT, BACK = BlockRange(start=0, stop=2), BlockRange(start=2, stop=6)


def record(worker: str, role: Role, blocks: BlockRange | None = None) -> WorkerRecord:
    return WorkerRecord(
        worker=worker,
        instance=f"{worker}-i",
        role=role,
        pipeline="main",
        subject="s",
        pid=77,
        device="cpu",
        blocks=blocks,
    )


def stage(worker: str, blocks: BlockRange, state: str = "ready") -> StageStatus:
    return StageStatus(
        worker=worker,
        instance=f"{worker}-i",
        blocks=blocks,
        state=state,
        kv_capacity_tokens=1000,
        kv_used_tokens=250,
        busy=0.42,
        bubble=0.17,
    )


def conductor(**fields: Any) -> ConductorStatus:
    defaults: dict[str, Any] = {
        "instance": "c1",
        "epoch": 7,
        "updated_at": 1.0,
        "uptime_s": 3700.0,
        "fingerprint": "f" * 64,
        "routes": (RouteStatus(workers=("stage-0", "stage-1"), blocks=(FRONT, BACK), num_sessions=3, num_in_flight=2),),
        "missing_blocks": (),
        "stages": (stage("stage-0", FRONT), stage("stage-1", BACK, "suspended")),
        "vision": (VisionStatus(worker="vision-0", instance="vision-0-i", state="ready", num_preparing=0, busy=0.1),),
        "refused": (),
        "waits_for": None,
        "num_sessions": {"running": 3, "waiting": 0},
        "num_jobs_waiting": 5,
        "tokens_per_s": 12.34,
        "captions_per_s": 0.5,
        "num_finished": {"succeeded": 9},
        "num_replays": 1,
        "num_uncommitted_tokens": 0,
    }
    return ConductorStatus(**{**defaults, **fields})


def pipeline(conductor: ConductorStatus | None) -> PipelineStatus:
    return PipelineStatus(
        pipeline="main",
        workers=(record("stage-0", "stage", FRONT), record("stage-1", "stage", BACK), record("vision-0", "vision")),
        conductor=conductor,
        queue=QueueStatus(num_waiting=5, num_in_progress=3),
        jobs={"queued": 5, "running": 3, "succeeded": 9},
    )


def rendered(status: PipelineStatus, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_status(status))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, first: str) -> list[str]:
    workers = text[text.index("worker  ") :]
    return next(line.split() for line in workers.splitlines() if line.split()[:1] == [first])


def test_a_ready_pipeline_shows_route_workers_queue_and_rates() -> None:
    text = rendered(pipeline(conductor()))
    assert "pipeline main  ready" in text
    assert "up 1 h 1 min" in text
    assert "stage-0 0:2 → stage-1 2:6" in text
    assert "12.3 tokens/s, 0.50 captions/s" in text
    assert "5 waiting, 3 taken" in text
    assert row(text, "stage-0")[:8] == ["stage-0", "layers", "0:2", "ready", "42%", "17%", "250/1000", "cpu"]


def test_a_certificates_end_is_said_thirty_days_ahead() -> None:
    now = datetime.now(UTC)
    ends = {"gpu-1": now + timedelta(days=200), "gpu-2": now + timedelta(days=29, hours=1), "servers": now}
    status = msgspec.structs.replace(
        pipeline(conductor()), certificates={host: end.timestamp() for host, end in ends.items()}
    )
    text = " ".join(rendered(status).split())
    assert "The certificate of gpu-2 ends on" in text
    assert "in 29 days: where the authority is, run `broker-pipeline secrets rotate DIR gpu-2 --certificate`" in text
    assert "The certificate of servers ended on" in text
    assert "gpu-1" not in text


def test_kept_beginnings_are_shown_once_there_are_some() -> None:
    assert "kept" not in rendered(pipeline(conductor()))
    kept = KeptCounts(num_prefixes=3, num_tokens=640, num_hits=12, num_hit_tokens=2400, num_evictions=7)
    text = " ".join(rendered(pipeline(conductor(kept=kept))).split())
    assert "kept 3 beginnings of 640 tokens; 12 sessions have begun with one, 7 have made room" in text


def test_hedges_are_shown_once_there_are_some() -> None:
    assert "hedges" not in rendered(pipeline(conductor()))
    hedges = HedgeCounts(num_requests=1240, num_hedges=5, num_won=2)
    text = rendered(pipeline(conductor(hedges=hedges)))
    assert "hedges  5 of 1240 requests to vision workers, 2 won" in text


def test_each_share_is_shown_with_its_conductor_and_one_without_a_route_is_said() -> None:
    shown = merged([conductor(share="a"), conductor(share="b", instance="c2", epoch=8, routes=())])
    status = pipeline(shown)
    records = tuple(
        msgspec.structs.replace(each, share=share) for each, share in zip(status.workers, ("a", "b", ""), strict=True)
    )
    status = msgspec.structs.replace(status, workers=records)
    text = rendered(status)
    assert "2 shares, conductors: 2, up 1 h 1 min" in text
    assert [line.split() for line in text.splitlines() if line.startswith("b ")] == [["b", "c2", "8", "0", "3", "0.50"]]
    assert "layers 0:2, share a" in text
    assert [hint for hint in hints(status) if "Share" in hint] == [
        "Share 'b' runs nothing: its usable stages do not hold the whole model"
    ]


def test_what_carries_a_workers_payloads_is_shown() -> None:
    carried = {
        "shm": CarriedCounts(num_messages=9, num_bytes=1_200_000_000),
        "nats": CarriedCounts(num_messages=1, num_bytes=5000),
    }
    text = rendered(pipeline(conductor(transport={"stage-0": TransportCounts(carried=carried)})), width=200)
    assert "shm 1.2 GB, nats 5.0 kB" in text


def test_on_a_narrow_terminal_nothing_is_cut_off_or_torn() -> None:
    """Twelve stages of the largest model, on hosts with long names."""
    ranges = [BlockRange(start=8 * index, stop=min(8 * index + 8, 94)) for index in range(12)]
    names = [f"stage-{index}" for index in range(12)]
    records = [
        msgspec.structs.replace(record(name, "stage", blocks), host=f"gpu-{name}.rack-7.example.org", device="cuda:0")
        for name, blocks in zip(names, ranges, strict=True)
    ]
    route = RouteStatus(workers=tuple(names), blocks=tuple(ranges), num_sessions=512, num_in_flight=24)
    stages = tuple(stage(name, blocks) for name, blocks in zip(names, ranges, strict=True))
    shown = conductor(model="Qwen/Qwen3-VL-235B-A22B-Thinking", routes=(route,), stages=stages)
    status = msgspec.structs.replace(pipeline(shown), workers=tuple(records))
    lines = rendered(status, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    text = "\n".join(lines)
    assert "…" not in text
    for name, blocks in zip(names, ranges, strict=True):
        assert f"{name} {blocks.start}:{blocks.stop}" in text, "a stop of the route is on one line"
        assert f"worker {name}\n" in text
        assert f"host gpu-{name}.rack-7.example.org" in text
    assert text.count("KV tokens 250/1000") == text.count("bubble 17%") == 12
    assert "sessions 512  in flight 24" in text
    assert "model   Qwen/Qwen3-VL-235B-A22B-Thinking ffffffffffff" in text


def test_what_the_conductor_thinks_of_a_worker_counts() -> None:
    old, twin = (
        RefusedWorker(worker=worker, instance=instance, reason="old")
        for worker, instance in (("vision-0", "vision-0-i"), ("twin", "stage-1-i"))
    )
    text = rendered(pipeline(conductor(refused=(old, twin))))
    assert row(text, "stage-1")[3] == "suspended"
    assert row(text, "vision-0")[2] == "refused"
    assert "twin is not used: old" in text


def test_hints_say_what_to_start() -> None:
    assert list(hints(pipeline(conductor()))) == []
    assert "broker-pipeline conductor" in next(hints(pipeline(None)))
    found = list(hints(pipeline(conductor(missing_blocks=(BACK,), vision=(), routes=(), waits_for="no route"))))
    assert "--blocks 2:6" in found[0]
    assert "broker-pipeline vision" in found[1]
    assert found[2] == "Jobs wait: no route"


def test_without_a_conductor_it_is_not_ready() -> None:
    assert "not ready" in rendered(pipeline(None))


def test_workers_that_took_part_are_those_on_routes_and_at_the_pictures() -> None:
    lines = describe_workers(pipeline(conductor())).splitlines()
    assert [line.split()[0] for line in lines] == ["stage-0", "stage-1", "vision-0"]
    assert describe_workers(pipeline(None)) == ""


def test_limits_are_shown_with_what_the_model_takes_where_that_is_more() -> None:
    limits = SessionLimits(
        max_tokens_in_all=20_000,
        max_position_embeddings=262_144,
        default_max_tokens=512,
        default_max_tokens_reasoning=4_096,
    )
    text = rendered(pipeline(conductor(limits=limits)))
    assert (
        "output 512, with reasoning 4096 tokens unless asked; prompt and output 20000 (the model takes 262144)" in text
    )
    stated = msgspec.structs.replace(limits, max_tokens_in_all=262_144, default_max_tokens_reasoning=512)
    lines = rendered(pipeline(conductor(limits=stated))).splitlines()
    assert "limits  output 512 tokens unless asked; prompt and output 262144" in map(str.rstrip, lines)
