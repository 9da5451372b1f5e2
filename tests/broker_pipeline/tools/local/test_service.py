"""A real service, the gateway, as a child process."""

from pathlib import Path

import aiohttp
import psutil
import pytest

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.processes import readable
from broker_pipeline.tools.local.service import LocalService


def make_service(directory: Path, nats_url: str, redis_url: str, *flags: str, timeout_s: float = 30) -> LocalService:
    return LocalService(
        "gateway",
        ["gateway", "--port", "0", "--nats-url", nats_url, "--redis-url", redis_url, *flags],
        log_path=directory / "gateway.log",
        ready_path=directory / "run" / "gateway.ready",
        env={"OMP_NUM_THREADS": "1"},
        start_timeout_s=timeout_s,
    )


async def test_a_service_is_ready_when_it_says_so_and_again_after_a_kill(
    tmp_path: Path, nats_url: str, redis_url: str, namespace: str
) -> None:
    service = make_service(tmp_path, nats_url, redis_url, "--namespace", namespace)
    pids = set()
    for _ in range(2):
        await service.start()
        pids.add(service.process.pid)
        async with aiohttp.ClientSession() as http, http.get(service.facts["url"] + "/healthz") as answer:
            assert await answer.json() == {"status": "ok"}
        assert psutil.Process(service.process.pid).environ()["OMP_NUM_THREADS"] == "1"
        service.process.kill()
        await service.process.wait()
    assert len(pids) == 2


async def test_stop_drains_and_exits_with_zero(tmp_path: Path, nats_url: str, redis_url: str, namespace: str) -> None:
    service = make_service(tmp_path, nats_url, redis_url, "--namespace", namespace)
    await service.start()
    await service.stop(10)
    assert service.process.returncode == 0


async def test_an_unreachable_redis_is_in_the_last_words(tmp_path: Path, nats_url: str) -> None:
    service = make_service(tmp_path, nats_url, "redis://127.0.0.1:1")
    with pytest.raises(ServerStartError, match=r"gateway did not start: exit status 69(.|\n)*cannot reach Redis"):
        await service.start()


async def test_a_service_that_does_not_become_ready_is_killed(tmp_path: Path, nats_url: str, redis_url: str) -> None:
    service = make_service(tmp_path, nats_url, redis_url, timeout_s=0.1)
    with pytest.raises(ServerStartError, match=r"not ready after 0\.1 s"):
        await service.start()
    assert not service.process.is_running


def test_log_lines_are_made_readable_and_others_kept() -> None:
    line = '{"service": "stage", "event": "lost", "level": "error", "timestamp": "t", "code": "kv", "field": null}'
    assert readable(line) == "error   lost  code=kv"
    for other in ("Traceback (most recent call last):", "[1, 2]", "17", '{"a": 1}'):
        assert readable(other) == other
