"""The clocks of conductor, gateway and workers jump by hours in the middle of everything: nobody times out for it.

NATS and Redis keep the true time: they are another host.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from tests.kit.running.drill import crowd_questions, decoding, fault_cluster, log_lines, undisturbed
from tests.kit.running.pipeline_client import client_of
from tests.kit.waiting import eventually
from trials.soak.faults import clocks

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(clocks.library() is None, reason="needs Debian's libfaketime"),
]

QUESTIONS = crowd_questions(16, 48)
HOUR_S = 3600
PATIENT = ("--heartbeat-timeout-s", "20")
"""Much less than the jump, and more than a busy machine keeps a worker waiting."""


async def conductor_has_jumped(gateway_url: str, offset_s: int) -> bool:
    """Whether the status that the conductor last published, every 5 s, is of another time than ours by `offset_s`."""
    conductor = (await fetch_status(gateway_url)).conductor
    return conductor is not None and abs(conductor.updated_at - time.time() - offset_s) < 60


@pytest.mark.parametrize("offset_s", [6 * HOUR_S, -6 * HOUR_S])
async def test_a_clock_jumps_while_sessions_run(
    tmp_path: Path, own_nats: EmbeddedNats, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, offset_s: int
) -> None:
    clock = tmp_path / "clock"
    clocks.set_clock(clock, 0)
    for name, value in clocks.environment(clock).items():
        monkeypatch.setenv(name, value)
    urls = {"nats_url": own_nats.url, "redis_url": own_redis.url}
    cluster = fault_cluster(tmp_path / "run", "3", **urls, extra_arguments={"conductor": PATIENT})
    async with cluster, client_of(cluster) as client:
        expected = await undisturbed(client, QUESTIONS)
        async with decoding(client, QUESTIONS, 10, at_once=12) as crowd:
            clocks.set_clock(clock, offset_s)
            assert await crowd.finish() == expected
        assert await undisturbed(client, QUESTIONS) == expected
        await eventually(lambda: conductor_has_jumped(cluster.gateway_url, offset_s))
        lines = log_lines(cluster.processes["conductor-0"].log_path)
        events = {line.event for line in lines}
        assert not events & {"attempt_lost", "tenure_lost", "worker_suspended", "deadline_passed"}, events
        await client.wait_empty()
