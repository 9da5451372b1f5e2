"""A client's patience, against two gateways that misbehave on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from broker_pipeline.errors import GatewayUnreachableError
from broker_pipeline.messages.jobs import JobRecord
from trials.soak.proof.client import SoakClient, UnexpectedAnswerError
from trials.soak.proof.questions import Question, make_questions, write_pictures


@dataclass
class Scripted:
    """Answers submissions with a list of statuses, the last one for ever."""

    statuses: list[int]
    job_id: str = "job-1"
    keys: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def submit(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers["Idempotency-Key"])
        self.bodies.append(await request.read())
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == 0:
            assert request.transport is not None
            request.transport.abort()  # dies before it answers
        headers = {"Retry-After": "1"} if status == 429 else {}
        return web.Response(status=status or 500, body=self._record("queued"), headers=headers)

    async def show(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._record("succeeded"))

    def _record(self, status: str) -> bytes:
        return msgspec.json.encode(JobRecord(job_id=self.job_id, status=status, created_at=1.0))  # type: ignore[arg-type]


@asynccontextmanager
async def client_of(*gateways: Scripted, tmp_path: Path, patience_s: float = 10.0) -> AsyncIterator[SoakClient]:
    async with AsyncExitStack() as stack:
        urls = []
        for gateway in gateways:
            app = web.Application()
            app.add_routes([web.post("/v1/jobs", gateway.submit), web.get("/v1/jobs/{id}", gateway.show)])
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        write_pictures(tmp_path, 0)
        yield await stack.enter_async_context(SoakClient.open(urls, tmp_path, run="r", patience_s=patience_s))


def question(number: int) -> Question:
    return msgspec.structs.replace(make_questions(0, 10)[1], number=number)


async def test_a_dead_gateway_costs_a_try_at_the_next_one_with_the_same_key(tmp_path: Path) -> None:
    dead, alive = Scripted([0]), Scripted([503, 202])
    async with client_of(dead, alive, tmp_path=tmp_path) as client:
        seen = await client.run(question(2))
    assert seen.record.status == "succeeded"
    assert seen.job_ids == ("job-1",)
    assert set(dead.keys) == set(alive.keys) == {"soak-r-2"}
    assert set(dead.bodies) == set(alive.bodies)
    assert client.counts.num_unanswered >= 1
    assert client.counts.num_unavailable == 1


async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    full = Scripted([429, 202])
    async with client_of(full, tmp_path=tmp_path) as client:
        seen = await client.run(question(2))
    assert client.counts.num_refused == 1
    assert seen.seconds >= 1.0


async def test_a_repeat_that_becomes_another_job_is_seen(tmp_path: Path) -> None:
    one, other = Scripted([202, 503]), Scripted([202], job_id="job-2")
    async with client_of(one, other, tmp_path=tmp_path) as client:
        seen = await client.run(question(14))
    assert seen.job_ids == ("job-1", "job-2")


@pytest.mark.parametrize("status", [200, 400, 404, 409, 413])
async def test_an_answer_that_must_not_be_is_an_error(tmp_path: Path, status: int) -> None:
    async with client_of(Scripted([status]), tmp_path=tmp_path) as client:
        with pytest.raises(UnexpectedAnswerError, match=str(status)):
            await client.run(question(2))


async def test_patience_ends(tmp_path: Path) -> None:
    async with client_of(Scripted([503]), tmp_path=tmp_path, patience_s=0.5) as client:
        with pytest.raises(GatewayUnreachableError, match=r"no gateway answered POST /v1/jobs for 0\.5 s"):
            await client.run(question(2))
