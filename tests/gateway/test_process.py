"""The command `broker-pipeline gateway`, as a process with signals and exit codes."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.api.native.test_jobs import accepted, form
from tests.kit.running.gateway_process import gateway_process, spawn, until_metrics


async def exit_code(process: Any) -> int:
    async with asyncio.timeout(60.0):  # servers that stay away are waited for
        return int(await process.wait())


async def test_a_stopped_gateway_finishes_what_it_has(
    tmp_path: Path, nats_url: str, redis_url: str, namespace: str, jpeg: bytes
) -> None:
    """An upload under way becomes a job, a stream and a long poll end, a new connection is refused."""
    released = asyncio.Event()

    async def drip() -> Any:
        yield b'{"prompt": "'
        await released.wait()
        yield b'x"}'

    async with gateway_process(tmp_path, nats_url, redis_url, namespace, "--port", "0") as (process, url):
        async with aiohttp.ClientSession(base_url=url) as http:
            job = await accepted(http, data=form(jpeg))
            headers = {"Content-Type": "application/json"}
            upload = asyncio.ensure_future(http.post("/v1/jobs", data=drip(), headers=headers))
            poll = asyncio.ensure_future(http.get(f"/v1/jobs/{job['job_id']}?wait_s=60"))
            async with http.get(f"/v1/jobs/{job['job_id']}/events") as stream:
                await until_metrics(url, uploads_in_flight=1, streams_open=2)
                process.kill(signal.SIGTERM)
                assert b": the gateway is stopping; reconnect" in await stream.content.read()
            assert (await poll).status == 200
            async with aiohttp.ClientSession() as stranger:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await stranger.get(f"{url}/healthz")
            released.set()
            assert (await upload).status == 202
        assert await exit_code(process) == 0
    lines = [json.loads(line) for line in (tmp_path / "gateway.log").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "service_starting"
    assert "service_ready" in events
    assert events[-1] == "service_stopped"
    done = [line for line in lines if line["event"] == "request_done"]
    assert all({"request_id", "status", "route", "request_s"} <= set(line) for line in done)


async def test_a_request_that_never_ends_does_not_hold_a_stopped_gateway(
    tmp_path: Path, nats_url: str, redis_url: str, namespace: str
) -> None:
    flags = ("--port", "0", "--drain-s", "1.5")
    async with gateway_process(tmp_path, nats_url, redis_url, namespace, *flags) as (process, url):
        host, _, port = url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        await writer.drain()
        await until_metrics(url, uploads_in_flight=1)
        process.kill(signal.SIGTERM)
        async with asyncio.timeout(4.0):
            assert await process.wait() == 0
        writer.close()
    assert "requests_cut_short" in (tmp_path / "gateway.log").read_text()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--allow-private-urls", "10.0.0.0/99"], 2, "allow-private-urls"),
        (["--max-images", "0"], 2, "max-images"),
        (["--tenant-webhook", "alice,https://example.com"], 2, "TENANT,URL,FILE"),
        (["--tenant-webhook", "alice,https://example.com/?a,b,/none/such"], 2, "/none/such cannot be read"),
        (["--media-dir", "/none/such"], 2, "media-dir"),
        pytest.param(["--nats-url", "nats://127.0.0.1:1"], 69, "NATS", marks=pytest.mark.slow),
        (["--redis-url", "redis://127.0.0.1:1"], 69, "Redis"),
        (["--max-media-mb", "900000000"], 2, "--max-media-mb"),
    ],
)
async def test_what_cannot_start_says_why(
    tmp_path: Path, nats_url: str, redis_url: str, flags: list[str], code: int, said: str
) -> None:
    process = await spawn(tmp_path, nats_url, redis_url, "--port", "0", *flags)
    assert await exit_code(process) == code
    assert said in (tmp_path / "gateway.log").read_text()


async def test_a_port_in_use(tmp_path: Path, nats_url: str, redis_url: str, namespace: str) -> None:
    async with gateway_process(tmp_path, nats_url, redis_url, namespace, "--port", "0") as (_, url):
        flags = ("--namespace", namespace, "--port", url.rpartition(":")[2])
        process = await spawn(tmp_path, nats_url, redis_url, *flags, name="second")
        assert await exit_code(process) == 2
        assert "another --port" in (tmp_path / "second.log").read_text()
