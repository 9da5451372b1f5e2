"""`broker-pipeline gateway --processes`: one address, several processes, and nobody notices which one answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker_pipeline.errors import ConfigurationError, Failure
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.wire.transport import Transport
from gateway.processes import reserved_port
from gateway.settings import GatewaySettings, Limits
from tests.gateway.api.native.test_events import Reader, stream
from tests.gateway.api.native.test_jobs import accepted, form
from tests.gateway.test_process import exit_code
from tests.kit.acting.conductor import acting_conductor
from tests.kit.running.gateway_process import gateway_process, spawn, until_metrics
from tests.kit.waiting import eventually

FLAGS = ("--port", "0", "--processes", "2")


@pytest.fixture
def start(tmp_path: Path, nats_url: str, redis_url: str, namespace: str) -> Any:
    return lambda *flags: gateway_process(tmp_path, nats_url, redis_url, namespace, *FLAGS, *flags)


def logged(directory: Path, event: str) -> list[dict[str, Any]]:
    lines = (directory / "gateway.log").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def pids(directory: Path) -> list[int]:
    """The process ids of the latest process 0 and 1."""
    latest = {line["process"]: line["pid"] for line in logged(directory, "process_ready")}
    return [latest["gateway-0"], latest["gateway-1"]]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@asynccontextmanager
async def clients_of_both(url: str) -> AsyncIterator[tuple[aiohttp.ClientSession, aiohttp.ClientSession]]:
    """Connections that lead to process 0 and to process 1; each client has one and keeps it."""
    found: dict[str, aiohttp.ClientSession] = {}
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(10.0):
            while len(found) < 2:
                connector = aiohttp.TCPConnector(limit=1)
                http = await stack.enter_async_context(aiohttp.ClientSession(base_url=url, connector=connector))
                found[await process_behind(http)] = http
        yield found["gateway-0"], found["gateway-1"]


async def repeated(http: aiohttp.ClientSession, path: str) -> Any:
    """Ask until there is an answer: a process that dies takes its connections along, those in its backlog as well."""
    while True:
        with suppress(aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            return await show(http, path)


async def process_behind(http: aiohttp.ClientSession) -> str:
    async with http.get("/metrics") as answer:
        match = re.search(r'transport_reconnects_total\{process="(gateway-\d)"\}', await answer.text())
        assert match is not None
        return match[1]


async def show(http: aiohttp.ClientSession, path: str, method: str = "GET") -> Any:
    async with http.request(method, path) as answer:
        assert answer.ok, await answer.text()
        return await answer.json()


async def test_consecutive_requests_may_reach_different_processes(
    start: Any, transport: Transport, redis: RedisClient, namespace: str, jpeg: bytes
) -> None:
    """Whatever one process was told, the other one knows: every route, and the counters."""
    async with start() as (_, url), acting_conductor(transport, redis, namespace) as conductor:
        async with clients_of_both(url) as (one, other):
            job = await accepted(one, data=form(jpeg), headers={"Idempotency-Key": "k"})
            path = f"/v1/jobs/{job['job_id']}"
            async with other.post("/v1/jobs", data=form(jpeg), headers={"Idempotency-Key": "k"}) as answer:
                assert (await answer.json())["job_id"] == job["job_id"]
                assert answer.headers["Idempotent-Replayed"] == "true"
            assert [each["job_id"] for each in (await show(other, "/v1/jobs"))["jobs"]] == [job["job_id"]]
            spec = (delivery := await conductor.take()).spec
            attempt = await conductor.begin(spec)
            await conductor.commit(job["job_id"], attempt, 0, ["a ", "b "])
            async with stream(one, job) as answer:
                events = Reader(answer).events()
                assert [(await anext(events)).kind for _ in range(3)] == ["queued", "started", "tokens"]
            resumed = await other.get(f"{path}/events", headers={"Last-Event-ID": "2"})
            poll = asyncio.ensure_future(show(one, f"{path}?wait_s=20"))
            await until_metrics(url, streams_open=3)  # that of who left first as well, until something is sent there
            await conductor.commit(job["job_id"], attempt, 2, ["c"])
            await conductor.finish(spec, attempt, Failure("internal", "as the test wants it"))
            await delivery.ack()
            assert (await poll)["status"] == "failed"
            told = [event.kind for event in await Reader(resumed).rest()]
            assert (told[-1], told.count("tokens")) == ("finished", 1)
        async with clients_of_both(url) as (one, other):
            assert (await show(other, f"{path}/retry", "POST"))["status"] == "queued"
            assert (await show(one, path, "DELETE"))["status"] == "cancelled"
            assert (await show(other, path))["status"] == "cancelled"
            assert (await show(one, "/v1/status"))["jobs"] == (await show(other, "/v1/status"))["jobs"]
            for http in (one, other):
                async with http.get("/metrics") as answer:
                    shown = await answer.text()
                assert 'broker_pipeline_jobs_submitted_total{outcome="accepted"} 1.0' in shown
                assert 'broker_pipeline_jobs_submitted_total{outcome="repeated"} 1.0' in shown
                assert "broker_pipeline_streams_open 0.0" in shown


async def test_a_killed_process_is_started_again_and_what_it_counted_stays(
    start: Any, tmp_path: Path, jpeg: bytes
) -> None:
    async with start() as (_, url):
        async with clients_of_both(url) as (one, other):
            job = await accepted(one, data=form(jpeg))
            poll = asyncio.ensure_future(repeated(one, f"/v1/jobs/{job['job_id']}?wait_s=60"))
            await until_metrics(url, streams_open=1)
            victim, survivor = pids(tmp_path)
            os.kill(victim, signal.SIGKILL)
            await show(other, f"/v1/jobs/{job['job_id']}", "DELETE")
            assert (await poll)["status"] == "cancelled", "whoever is there answers who asks again"
        await eventually(lambda: len(logged(tmp_path, "process_ready")) == 3, timeout_s=15.0)
        assert [line["process"] for line in logged(tmp_path, "process_died")] == ["gateway-0"]
        assert pids(tmp_path)[1] == survivor
        async with clients_of_both(url) as both:
            for http in both:
                async with http.get("/metrics") as answer:
                    shown = await answer.text()
                assert 'broker_pipeline_jobs_submitted_total{outcome="accepted"} 1.0' in shown
                assert "broker_pipeline_streams_open 0.0" in shown, "what a dead process had open is no more"


async def test_a_signal_drains_all_processes(start: Any, tmp_path: Path) -> None:
    released = asyncio.Event()

    async def drip() -> Any:
        yield b'{"prompt": "'
        await released.wait()
        yield b'x"}'

    async with start() as (process, url), clients_of_both(url) as both:
        headers = {"Content-Type": "application/json"}
        uploads = [asyncio.ensure_future(http.post("/v1/jobs", data=drip(), headers=headers)) for http in both]
        await until_metrics(url, uploads_in_flight=2)
        process.kill(signal.SIGTERM)
        await eventually(lambda: len(logged(tmp_path, "signal_received")) == 3)
        released.set()
        assert [(await upload).status for upload in uploads] == [202, 202]
        assert await exit_code(process) == 0
    assert {line["service"] for line in logged(tmp_path, "service_stopped")} == {"gateway", "gateway-0", "gateway-1"}


async def test_a_second_signal_ends_all_at_once(start: Any, tmp_path: Path) -> None:
    async with start() as (process, url), clients_of_both(url) as (one, _):
        upload = asyncio.ensure_future(
            one.post("/v1/jobs", data=never_ending(), headers={"Content-Type": "application/json"})
        )
        await until_metrics(url, uploads_in_flight=1)
        process.kill(signal.SIGTERM)
        await eventually(lambda: bool(logged(tmp_path, "signal_received")))
        process.kill(signal.SIGTERM)
        assert await exit_code(process) == 130
        assert not any(map(is_alive, pids(tmp_path)))
        with pytest.raises(aiohttp.ClientError):
            await upload


async def never_ending() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


async def test_no_process_outlives_a_supervisor_that_was_killed_and_its_port_is_free(
    start: Any, tmp_path: Path, nats_url: str, redis_url: str
) -> None:
    async with start() as (process, url):
        port = url.rpartition(":")[2]
        second = await spawn(tmp_path, nats_url, redis_url, "--processes", "2", "--port", port, name="second")
        assert await exit_code(second) == 2
        assert "another --port" in (tmp_path / "second.log").read_text()
        process.kill(signal.SIGKILL)
        await eventually(lambda: not any(map(is_alive, pids(tmp_path))))
        await eventually(lambda: is_free(int(port)))


def is_free(port: int) -> bool:
    try:
        with reserved_port("127.0.0.1", port):
            return True
    except ConfigurationError:
        return False


async def test_a_process_that_cannot_start_ends_all_with_its_exit_code(
    tmp_path: Path, nats_url: str, redis_url: str
) -> None:
    process: ChildProcess = await spawn(tmp_path, nats_url, redis_url, *FLAGS, "--max-media-mb", "900000000")
    assert await exit_code(process) == 2
    assert "--max-media-mb" in (tmp_path / "gateway.log").read_text()


def test_a_port_that_is_reserved_is_nobody_elses() -> None:
    with (
        reserved_port("127.0.0.1", 0) as (_, port),
        pytest.raises(ConfigurationError, match="another --port"),
        reserved_port("127.0.0.1", port),
    ):
        pass


def test_limits_are_those_of_all_processes_together() -> None:
    limits = Limits(max_uploads=16, max_streams=1001)
    alone = GatewaySettings(limits=limits)
    assert alone.own_limits == limits
    shares = [GatewaySettings(limits=limits, num_processes=4, process_index=index).own_limits for index in range(4)]
    assert {(share.max_uploads, share.max_streams) for share in shares} == {(4, 251)}
    assert [GatewaySettings(num_processes=4, process_index=index).keeps_house for index in (0, 1)] == [True, False]
