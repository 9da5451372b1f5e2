"""The clocks of conductor, gateway and workers jump by hours in the middle of everything: nobody times out for it.

libfaketime gives the processes another wall clock, and reads the offset from a file at each look; monotonic clocks stay
true, as they do when an administrator or NTP sets a host's time. NATS and Redis keep the true time: they are another
host.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from tests.kit.running.drill import crowd_questions, decoding, fault_cluster, log_lines, undisturbed
from tests.kit.running.pipeline_client import client_of
from tests.kit.waiting import eventually

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(LIBRARY is None or sys.platform != "linux", reason="needs Debian's libfaketime"),
]

QUESTIONS = crowd_questions(16, 48)
HOUR_S = 3600
PATIENT = ("--heartbeat-timeout-s", "20")
"""Much less than the jump, and more than a busy machine keeps a worker waiting."""


class FakeClock:
    """The wall clock of all processes that are started while it is set up."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self.set(0)
        monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
        monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(path))
        monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
        monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        # What it believes to mend in waits by the monotonic clock has every wait for Python's lock time out late.
        monkeypatch.setenv("FAKETIME_FORCE_MONOTONIC_FIX", "0")

    def set(self, offset_s: int) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(f"{offset_s:+d}\n")
        partial.replace(self._path)


async def conductor_has_jumped(gateway_url: str, offset_s: int) -> bool:
    """Whether the status that the conductor last published, every 5 s, is of another time than ours by `offset_s`."""
    conductor = (await fetch_status(gateway_url)).conductor
    return conductor is not None and abs(conductor.updated_at - time.time() - offset_s) < 60


@pytest.mark.parametrize("offset_s", [6 * HOUR_S, -6 * HOUR_S])
async def test_a_clock_jumps_while_sessions_run(
    tmp_path: Path, own_nats: EmbeddedNats, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, offset_s: int
) -> None:
    clock = FakeClock(tmp_path / "clock", monkeypatch)
    urls = {"nats_url": own_nats.url, "redis_url": own_redis.url}
    cluster = fault_cluster(tmp_path / "run", "3", **urls, extra_arguments={"conductor": PATIENT})
    async with cluster, client_of(cluster) as client:
        expected = await undisturbed(client, QUESTIONS)
        async with decoding(client, QUESTIONS, 10, at_once=12) as crowd:
            clock.set(offset_s)
            assert await crowd.finish() == expected
        assert await undisturbed(client, QUESTIONS) == expected
        await eventually(lambda: conductor_has_jumped(cluster.gateway_url, offset_s))
        lines = log_lines(cluster.processes["conductor-0"].log_path)
        events = {line.event for line in lines}
        assert not events & {"attempt_lost", "tenure_lost", "worker_suspended", "deadline_passed"}, events
        await client.wait_empty()
