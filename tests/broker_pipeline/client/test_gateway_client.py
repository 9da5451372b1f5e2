"""A client's patience and what it makes of answers, against a server that says what the test tells it to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice

import msgspec
import pytest
from aiohttp import web

from broker_pipeline.client.calls import backoff_seconds, retry_after_s
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient, fetch_status
from broker_pipeline.errors import ConfigurationError, GatewayUnreachableError, JobNotFoundError
from broker_pipeline.messages.gateway import ErrorBody, ErrorDetail, JobList, PipelineStatus, QueueStatus
from broker_pipeline.messages.jobs import JobRecord

STATUS = PipelineStatus(
    pipeline="main",
    workers=(),
    conductor=None,
    queue=QueueStatus(num_waiting=1, num_in_progress=2),
    jobs={"queued": 1},
)


def job(number: int, status: str = "failed") -> JobRecord:
    return JobRecord(job_id=f"job-{number}", status=status, created_at=1.0)  # type: ignore[arg-type]


def error(code: str, message: str) -> ErrorBody:
    return ErrorBody(error=ErrorDetail(code=code, message=message, retryable=False, request_id="r", field="job_id"))


class Scripted:
    """Answers with a list of (status, body), the last one for ever; remembers what it was asked."""

    def __init__(self, *answers: tuple[int, msgspec.Struct | bytes], headers: dict[str, str] | None = None) -> None:
        self.answers = list(answers)
        self.headers = headers or {}
        self.asked: list[str] = []
        self.keys: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.asked.append(f"{request.method} {request.path_qs}")
        self.keys.append(request.headers.get("Idempotency-Key"))
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return web.Response(status=status, body=content, headers=self.headers)


@asynccontextmanager
async def listening(gateway: Scripted, port: int = 0) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", gateway.answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_the_state_of_a_pipeline_is_read_back() -> None:
    async with listening(Scripted((200, STATUS))) as url:
        assert await fetch_status(url + "/") == STATUS


@pytest.mark.parametrize("status", [200, 404])
async def test_what_is_no_gateway_is_said_to_be_none(status: int) -> None:
    async with listening(Scripted((status, b"<html>"))) as url:
        with pytest.raises(GatewayUnreachableError, match=f"status {status}.* is not a gateway of this version"):
            await fetch_status(url)


async def test_a_status_is_asked_for_once_and_the_reason_is_told() -> None:
    gateway = Scripted((503, error("state", "Redis is away")))
    async with listening(gateway) as url:
        with pytest.raises(GatewayUnreachableError, match=r"it answers 503 .*Redis is away"):
            await fetch_status(url)
    assert gateway.asked == ["GET /v1/status"]


async def test_a_gateways_error_is_raised_as_it_was_there() -> None:
    async with listening(Scripted((404, error("job_not_found", "no job x")))) as url, GatewayClient.open(url) as client:
        with pytest.raises(JobNotFoundError, match="no job x") as caught:
            await client.job("x")
    assert caught.value.field == "job_id"


async def test_a_submission_outlives_a_gateway_that_is_away_and_a_full_queue() -> None:
    gateway = Scripted(
        (502, b""), (429, b""), (202, job(1)), headers={"Retry-After": "1", "Idempotent-Replayed": "true"}
    )
    async with listening(gateway) as url, GatewayClient.open(url) as client:
        started = time.monotonic()
        submitted = await client.submit(b"picture", CaptionRequest(), "key")
    assert (submitted.record, submitted.is_repeat, submitted.num_tries) == (job(1), True, 3)
    assert gateway.keys == ["key"] * 3
    assert time.monotonic() - started >= 1.0


async def test_a_gateway_that_starts_later_is_found() -> None:
    async with listening(Scripted((200, STATUS))) as url:
        port = int(url.rpartition(":")[2])
    async with GatewayClient.open(url, patience_s=0.3) as client:
        with pytest.raises(GatewayUnreachableError, match=f"no gateway answers at {url}"):
            await client.status()
        async with listening(Scripted((200, STATUS)), port):
            assert await client.status() == STATUS


async def test_a_job_is_waited_for_until_it_has_ended() -> None:
    gateway = Scripted((200, job(1, "running")), (200, job(1, "succeeded")))
    async with listening(gateway) as url, GatewayClient.open(url) as client:
        assert (await client.wait("job-1")).status == "succeeded"
    assert gateway.asked == ["GET /v1/jobs/job-1?wait_s=20"] * 2


async def test_pages_of_jobs_are_followed_up_to_the_limit() -> None:
    first, second = JobList(jobs=(job(1), job(2)), next="2"), JobList(jobs=(job(3), job(4)), next="4")
    gateway = Scripted((200, first), (200, second))
    async with listening(gateway) as url, GatewayClient.open(url) as client:
        assert [record.job_id async for record in client.jobs("failed", 3)] == ["job-1", "job-2", "job-3"]
    assert gateway.asked == ["GET /v1/jobs?status=failed&limit=3", "GET /v1/jobs?status=failed&limit=3&after=2"]


async def test_a_url_must_be_one() -> None:
    with pytest.raises(ConfigurationError, match="not the http:// URL"):
        await fetch_status("localhost:8080")


def test_retry_after_is_read_with_care() -> None:
    assert retry_after_s("3") == 3.0
    assert retry_after_s(None) == retry_after_s("soon") == 0.0
    assert retry_after_s("100000") == 60.0


def test_backoff_doubles_up_to_its_end() -> None:
    waits = list(islice(backoff_seconds(0.1, 1.0), 8))
    assert all(
        0.7 * due <= wait <= 1.3 * due for wait, due in zip(waits, [0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1], strict=True)
    )
