"""A pipeline of several hosts as its conductor shows it, without anybody in it: for those who look at it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.messages.gateway import RateSample
from broker_pipeline.messages.status import (
    ConductorStatus,
    RefusedWorker,
    RouteStatus,
    StageStatus,
    VisionStatus,
)
from broker_pipeline.messages.workers import BlockRange, CarriedCounts, TransportCounts, WorkerRecord
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.subjects import worker_root
from tests.kit.acting.conductor import NOTHING_RUNS

HOSTS = {"vision-0": "attic", "stage-0": "attic", "stage-1": "cellar", "stage-2": "cellar", "stage-3": "garage"}
BLOCKS = {f"stage-{index}": BlockRange(start=9 * index, stop=9 * index + 9) for index in range(4)}


def conductor_status(**changes: Any) -> ConductorStatus:
    """Return what a busy conductor of four stages on three hosts shows."""
    stages = tuple(
        StageStatus(
            worker=name, instance="i", blocks=blocks, state="ready", kv_capacity_tokens=60_000,
            kv_used_tokens=9_000 * (index + 2), busy=(0.83, 0.64, 0.61, 0.72)[index], bubble=0.1,
        )
        for index, (name, blocks) in enumerate(BLOCKS.items())
    )  # fmt: skip
    vision = VisionStatus(worker="vision-0", instance="i", state="ready", num_preparing=3, busy=0.41)
    route = RouteStatus(workers=tuple(BLOCKS), blocks=tuple(BLOCKS.values()), num_sessions=212, num_in_flight=5)
    facts = NOTHING_RUNS | {
        "updated_at": 1000.0, "model": "Qwen/Qwen3-VL-8B-Instruct", "fingerprint": "f" * 64, "routes": (route,),
        "stages": stages, "vision": (vision,), "captions_per_s": 41.3, "tokens_per_s": 2643.0,
        "transport": transport(0), "waits_for": None,
    }  # fmt: skip
    return ConductorStatus(**(facts | changes))


def transport(seconds: float) -> dict[str, TransportCounts]:
    """Return what has been carried after so many seconds."""
    rates = {
        "vision-0": {"shm": 41e6, "tcp": 3e6},
        "stage-0": {"tcp": 12e6},
        "stage-1": {"shm": 12e6},
        "stage-2": {"nats": 12e6},
    }
    return {
        name: TransportCounts(carried={kind: _carried(rate * (100 + seconds)) for kind, rate in kinds.items()})
        for name, kinds in rates.items()
    }


def _carried(num_bytes: float) -> CarriedCounts:
    return CarriedCounts(num_messages=10, num_bytes=int(num_bytes))


def broken(status: ConductorStatus) -> ConductorStatus:
    """Return what is shown once the third stage has gone, and another one is of another model."""
    stages = tuple(stage for stage in status.stages if stage.worker != "stage-2")
    lame = msgspec.structs.replace(stages[1], state="suspended", reason="it failed 3 times in a row")
    refused = RefusedWorker(worker="stage-9", instance="i", reason="it holds another model (fingerprint 77ab…)")
    return msgspec.structs.replace(
        status,
        routes=(),
        stages=(stages[0], lame, *stages[2:]),
        missing_blocks=(BLOCKS["stage-2"],),
        captions_per_s=0.0,
        refused=(refused,),
    )


async def show(redis: RedisClient, namespace: str, status: ConductorStatus, *, without: tuple[str, ...] = ()) -> None:
    """Show this, with records of its workers."""
    registry = WorkerRegistry(redis, namespace, "main", ttl_s=120.0)
    for name, host in HOSTS.items():
        role = name.partition("-")[0]
        root = worker_root(namespace, "main", role, name, "i")
        record = WorkerRecord(
            worker=name, instance="i", role=role, pipeline="main", subject=root,
            host=host, device="NVIDIA RTX A4000", blocks=BLOCKS.get(name), num_layers=36,
        )  # fmt: skip
        if name in without:
            await registry.release(record)
        else:
            await registry.register(record)
    await redis.set(redis_keys.status(namespace, "main"), msgspec.json.encode(status), ex=120)


async def show_hour(redis: RedisClient, namespace: str, num_samples: int = 300) -> None:
    """Show an hour's rates, with a gap in which no gateway was there."""
    now = time.time()
    samples = [
        RateSample(
            at=now - 10.0 * (num_samples - index),
            num_waiting=int(400 + 350 * ((index * 7 % 90) / 90)), num_running=180 + index * 11 % 60,
            num_failed=index // 60, captions_per_s=38 + (index * 5 % 17) / 2, tokens_per_s=2400 + index * 37 % 400,
        )
        for index in range(num_samples) if not 120 <= index < 140
    ]  # fmt: skip
    await redis.rpush(redis_keys.rates(namespace, "main"), *map(msgspec.json.encode, samples))
