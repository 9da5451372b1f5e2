"""A stage stands still for longer than the buffers in front of it last: the server cuts it off, and all recovers.

The loop is held by SIGSTOP, and the server's buffer is made small, so that megabytes do and gigabytes are not needed.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from broker_pipeline import subjects
from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.tools.local import servers
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.wire.transport import Transport
from tests.kit.running.drill import crowd_questions, decoding, fault_cluster, log_lines, status_when, undisturbed
from tests.kit.running.pipeline_client import client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(120)]

QUESTIONS = crowd_questions(16, 120)
MIB = 1024 * 1024
MOST_FLOOD = 64 * MIB
"""Far more than the server (1 MiB here) and the kernel's socket buffers keep."""


async def test_a_stage_that_reads_nothing_is_cut_off_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = servers._nats_config
    monkeypatch.setattr(
        servers, "_nats_config", lambda *args: whole(*args).replace(f"max_pending: {512 * MIB}", f"max_pending: {MIB}")
    )
    monkeypatch.setattr(servers, "MAX_PAYLOAD_BYTES", MIB // 2)
    cluster = fault_cluster(tmp_path / "run", "3")
    async with cluster, client_of(cluster) as client:
        expected = await undisturbed(client, QUESTIONS)
        stage = cluster.processes["stage-1"]
        async with decoding(client, QUESTIONS, 10, at_once=12) as crowd:
            stopped_at = time.time()
            stage.kill(signal.SIGSTOP)
            try:
                await flood(cluster, "stage-1")
            finally:
                stage.kill(signal.SIGCONT)
            assert await crowd.finish() == expected
        assert stage.process.is_running, "it was cut off and connected again by itself"
        events = [line.event for line in log_lines(stage.log_path, stopped_at)]
        assert "nats_disconnected" in events
        assert "nats_reconnected" in events
        lost = log_lines(cluster.processes["conductor-0"].log_path, stopped_at, "attempt_lost")
        codes = {line.facts["code"] for line in lost}
        assert codes <= {"stage", "slow_consumer", "deadline_exceeded", "transport", "session_unknown", "kv_position"}
        print(f"\nsessions lost {len(lost)} attempts, for {sorted(codes)}")
        await status_when(cluster, lambda status: all(stage.state == "ready" for stage in status.conductor.stages))
        assert await undisturbed(client, QUESTIONS) == expected
        await client.wait_empty()


async def flood(cluster: LocalCluster, name: str) -> None:
    """Send a stage what it does not read, until the server has had enough of it."""
    status = await fetch_status(cluster.gateway_url)
    [record] = [worker for worker in status.workers if worker.worker == name]
    nats_log = cluster.processes["nats"].log_path
    async with Transport.open(cluster.nats_url, name="flood") as transport:
        for _ in range(MOST_FLOOD // (MIB // 4)):
            await transport.link.small.publish(subjects.work(record.subject), bytes(MIB // 4))
            if "Slow Consumer" in nats_log.read_text():
                return
            await asyncio.sleep(0.005)
        await eventually(lambda: "Slow Consumer" in nats_log.read_text())
