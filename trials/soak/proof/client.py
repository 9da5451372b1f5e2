"""A client as users would write it: real HTTP, an idempotency key, patience, and the next gateway when one is silent.

submit ──202──► job id ──long poll──► record          429: waits for Retry-After
   ▲   └─ no answer, 5xx: again, with the same key, at the next gateway
   └───── now and then it submits what was accepted once more; that must be the same job
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from broker_pipeline.client.calls import backoff_seconds, retry_after_s
from broker_pipeline.errors import GatewayUnreachableError, PipelineError
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord
from trials.soak.proof.questions import Question

LONG_POLL_S = 10.0
_ANSWER_TIMEOUT_S = 20.0
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 2.0
_REPEAT_EVERY = 7


class UnexpectedAnswerError(PipelineError):
    """A gateway said what no gateway may say to a right request."""

    code = "unexpected_answer"


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """What one client saw: every job id that its key was answered with, and the job at its end."""

    question: int
    job_ids: tuple[str, ...]
    record: JobRecord
    num_tries: int
    seconds: float


class ClientCounts(msgspec.Struct):
    """What all clients met; for the report."""

    num_calls: int = 0
    num_unanswered: int = 0
    num_refused: int = 0
    """429"""
    num_unavailable: int = 0
    """5xx"""


class SoakClient:
    """Talks to several gateways. Made by `open`."""

    def __init__(
        self, session: aiohttp.ClientSession, gateway_urls: Sequence[str], pictures: Path, run: str, patience_s: float
    ) -> None:
        """Call the gateways in turn; `pictures` is where the files of questions lie."""
        self.counts = ClientCounts()
        self._session = session
        self._urls = tuple(gateway_urls)
        self._pictures = pictures
        self._run = run
        self.patience_s = patience_s
        """Seconds without an answer after which a call is given up."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, gateway_urls: Sequence[str], pictures: Path, *, run: str, patience_s: float = 120.0
    ) -> AsyncIterator[SoakClient]:
        """Connect; `run` keeps the keys of two runs apart, calls without an answer are repeated for `patience_s`."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S, sock_connect=2.0)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            yield cls(session, gateway_urls, pictures, run, patience_s)

    async def run(self, question: Question) -> AskedQuestion:
        """Submit a question and wait for its end.

        Raises `UnexpectedAnswerError` for an answer that must not be, `GatewayUnreachableError` for none at all.
        """
        started = time.monotonic()
        caller = _Caller(self, first=question.number)
        body = self.body(question)
        headers = {"Idempotency-Key": f"soak-{self._run}-{question.number}", "Content-Type": "application/json"}
        job_ids = [(await caller.call("POST", "/v1/jobs", 202, body, headers)).job_id]
        if question.number % _REPEAT_EVERY == 0:
            job_ids.append((await caller.call("POST", "/v1/jobs", 202, body, headers)).job_id)
        record = await self._wait(caller, job_ids[0])
        seconds = time.monotonic() - started
        return AskedQuestion(question.number, tuple(dict.fromkeys(job_ids)), record, caller.num_tries, seconds)

    def body(self, question: Question) -> bytes:
        """Return a question as `POST /v1/jobs` takes it; its number is in the metadata."""
        images = [_data_url((self._pictures / name).read_bytes()) for name in question.pictures]
        request: dict[str, Any] = {
            "prompt": question.prompt,
            "images": images,
            "sampling": question.sampling,
            "metadata": {"question": str(question.number)},
        }
        return msgspec.json.encode(request)

    async def submit_once(self, url: str, question: Question) -> tuple[int, str | None, bytes]:
        """Submit a question without patience; return status, `Retry-After` and body."""
        headers = {"Content-Type": "application/json"}
        async with self._session.post(url, data=self.body(question), headers=headers) as response:
            return response.status, response.headers.get("Retry-After"), await response.read()

    async def _wait(self, caller: _Caller, job_id: str) -> JobRecord:
        while True:
            record = await caller.call("GET", f"/v1/jobs/{job_id}?wait_s={LONG_POLL_S:g}", 200)
            if record.status in FINAL_STATUSES:
                return record

    def url(self, turn: int) -> str:
        """Return the gateway whose turn it is."""
        return self._urls[turn % len(self._urls)]

    async def request(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str] | None
    ) -> tuple[int, bytes, float]:
        """Make one call; return status, body and the seconds that `Retry-After` asks for."""
        self.counts.num_calls += 1
        async with self._session.request(method, url, data=body, headers=headers) as response:
            return response.status, await response.read(), retry_after_s(response.headers.get("Retry-After"))


class _Caller:
    """The calls of one job: repeated until answered, each time at the next gateway."""

    def __init__(self, client: SoakClient, *, first: int) -> None:
        self.num_tries = 0
        self._client = client
        self._turn = first

    async def call(
        self, method: str, path: str, expected: int, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> JobRecord:
        deadline = time.monotonic() + self._client.patience_s
        backoff = backoff_seconds(_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S)
        while True:
            answer, wait_s = await self._try(method, path, expected, body, headers)
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                raise GatewayUnreachableError(f"no gateway answered {method} {path} for {self._client.patience_s:g} s")
            await asyncio.sleep(wait_s or next(backoff))

    async def _try(
        self, method: str, path: str, expected: int, body: bytes | None, headers: dict[str, str] | None
    ) -> tuple[JobRecord | None, float]:
        """Return the record, or None and the seconds that the gateway asks for."""
        self.num_tries += 1
        counts = self._client.counts
        url = self._client.url(self._turn) + path
        try:
            status, content, wait_s = await self._client.request(method, url, body, headers)
        except (aiohttp.ClientError, OSError, TimeoutError):
            counts.num_unanswered += 1
            self._turn += 1
            return None, 0.0
        if status == expected:
            return msgspec.json.decode(content, type=JobRecord), 0.0
        if status == 429:
            counts.num_refused += 1
            return None, wait_s
        if status < 500:
            raise UnexpectedAnswerError(f"{method} {path}: {status} {content[:300].decode(errors='replace')}")
        counts.num_unavailable += 1
        self._turn += 1
        return None, 0.0


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
