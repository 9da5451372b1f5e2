import urllib.request

import pytest

from broker_pipeline.conductor.metrics import ConductorMetrics
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.status import (
    ConductorStatus,
    HedgeCounts,
    KeptCounts,
    StageStatus,
    VisionStatus,
    WorkerTotals,
)
from broker_pipeline.messages.workers import BlockRange, CarriedCounts, TransportCounts

STATUS = ConductorStatus(
    instance="c", epoch=3, updated_at=1.0, uptime_s=1.0, fingerprint="f", routes=(), missing_blocks=(),
    stages=(
        StageStatus(
            worker="a", instance="i", blocks=BlockRange(start=0, stop=6), state="ready", kv_capacity_tokens=100,
            kv_used_tokens=40, kv_kept_tokens=32, busy=0.75, bubble=0.125,
            totals=WorkerTotals(busy_s=90.0, bubble_s=20.0, queue_s=1.5, num_microbatches=300, num_tokens=9000),
        ),
    ),
    vision=(
        VisionStatus(
            worker="v", instance="j", state="ready", num_preparing=0, num_overtaken=2, busy=0.5,
            totals=WorkerTotals(
                busy_s=8.0, num_microbatches=30, num_tokens=700, num_cache_hits=11, num_cache_misses=40
            ),
        ),
    ),
    refused=(), waits_for=None, num_sessions={"running": 5}, num_jobs_waiting=0, tokens_per_s=12.5,
    captions_per_s=0.5, num_finished={"succeeded": 7}, num_replays=2, num_uncommitted_tokens=0,
    num_prompt_tokens=900, num_copied_tokens=300,
    kept=KeptCounts(num_prefixes=4, num_tokens=64, num_hits=3, num_hit_tokens=48, num_evictions=2),
    hedges=HedgeCounts(num_requests=100, num_hedges=5, num_won=2),
    transport={
        "a": TransportCounts(
            num_reconnects=3, num_dropped=4, num_malformed=5, num_incomplete=6, num_edges_lost=7,
            carried={"shm": CarriedCounts(num_messages=8, num_bytes=900)},
        )
    },
)  # fmt: skip


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())


def test_what_the_conductor_shows_can_be_scraped() -> None:
    metrics = ConductorMetrics()
    port = metrics.start(0)
    assert "broker_pipeline_conductor_active 0.0" in scrape(port)
    metrics.show(STATUS)
    text = scrape(port)
    for line in (
        "broker_pipeline_conductor_active 1.0",
        "broker_pipeline_conductor_shares 1.0",
        "broker_pipeline_conductor_tokens_per_second 12.5",
        'broker_pipeline_conductor_sessions{state="running"} 5.0',
        'broker_pipeline_conductor_stage_busy{worker="a"} 0.75',
        'broker_pipeline_conductor_stage_bubble{worker="a"} 0.125',
        'broker_pipeline_conductor_vision_busy{worker="v"} 0.5',
        'broker_pipeline_conductor_stage_busy_seconds_total{worker="a"} 90.0',
        'broker_pipeline_conductor_stage_bubble_seconds_total{worker="a"} 20.0',
        'broker_pipeline_conductor_stage_queue_seconds_total{worker="a"} 1.5',
        'broker_pipeline_conductor_stage_microbatches_total{worker="a"} 300.0',
        'broker_pipeline_conductor_stage_tokens_total{worker="a"} 9000.0',
        'broker_pipeline_conductor_transport_reconnects_total{process="a"} 3.0',
        'broker_pipeline_conductor_transport_dropped_messages_total{process="a"} 4.0',
        'broker_pipeline_conductor_transport_malformed_messages_total{process="a"} 5.0',
        'broker_pipeline_conductor_transport_incomplete_messages_total{process="a"} 6.0',
        'broker_pipeline_conductor_transport_edges_lost_total{process="a"} 7.0',
        'broker_pipeline_conductor_transport_payloads_total{edge="shm",process="a"} 8.0',
        'broker_pipeline_conductor_transport_payload_bytes_total{edge="shm",process="a"} 900.0',
        'broker_pipeline_conductor_stage_kv_used_tokens{worker="a"} 40.0',
        'broker_pipeline_conductor_stage_kv_kept_tokens{worker="a"} 32.0',
        "broker_pipeline_conductor_kept_prefixes 4.0",
        "broker_pipeline_conductor_kept_prefix_tokens 64.0",
        "broker_pipeline_conductor_kept_prefix_hits 3.0",
        "broker_pipeline_conductor_kept_prefix_hit_tokens 48.0",
        "broker_pipeline_conductor_kept_prefix_evictions 2.0",
        'broker_pipeline_conductor_vision_busy_seconds_total{worker="v"} 8.0',
        'broker_pipeline_conductor_vision_batches_total{worker="v"} 30.0',
        'broker_pipeline_conductor_vision_visual_tokens_total{worker="v"} 700.0',
        'broker_pipeline_conductor_vision_cache_hits_total{worker="v"} 11.0',
        'broker_pipeline_conductor_vision_cache_misses_total{worker="v"} 40.0',
        'broker_pipeline_conductor_vision_overtaken_total{worker="v"} 2.0',
        "broker_pipeline_conductor_vision_requests_total 100.0",
        "broker_pipeline_conductor_vision_hedges_total 5.0",
        "broker_pipeline_conductor_vision_hedges_won_total 2.0",
    ):
        assert line in text.splitlines()
    with pytest.raises(ConfigurationError, match=str(port)):
        ConductorMetrics().start(port)
