"""What users and operators ask a gateway for. Everything may be sent twice: submissions carry an idempotency key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from broker_pipeline.client.calls import GatewayCalls
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.operator_token import token_for
from broker_pipeline.messages.gateway import BulkAnswer, BulkAnswers, EndedJobs, JobList, PipelineStatus
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord, JobStatus
from broker_pipeline.messages.workers import WorkerRecord

LONG_POLL_S = 20.0
_PAGE = 500
_STATUS_TIMEOUT_S = 10.0

Body = TypeVar("Body", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submission that the gateway took. `is_repeat`: it knew it already; `num_tries` counts our own."""

    record: JobRecord
    is_repeat: bool
    num_tries: int


class GatewayClient(GatewayCalls):
    """A client of one gateway. Made by `open`.

    Every method raises `GatewayUnreachableError` when patience ends, or the error that the gateway answered with:
    `JobNotFoundError` for a job that it does not know (any more), `WorkerNotFoundError`, `JobStateError`, …
    """

    async def submit(self, content: bytes, request: CaptionRequest, key: str, *, is_video: bool = False) -> Submitted:
        """Submit one picture or video under an idempotency key; waits while the queue is full."""
        kind = "video" if is_video else "image"

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData(default_to_multipart=True)
            data.add_field("request", request.as_json().decode(), content_type="application/json")
            data.add_field(kind, content, filename=kind, content_type="application/octet-stream")
            return data

        answer = await self.call("POST", "/v1/jobs", form=form, headers={"Idempotency-Key": key})
        is_repeat = answer.headers.get("Idempotent-Replayed") == "true"
        return Submitted(self.decode(answer, JobRecord), is_repeat, answer.num_tries)

    async def submit_many(self, jobs: Sequence[bytes]) -> tuple[Sequence[BulkAnswer], int]:
        """Submit jobs, each as JSON with a key; return what came of each, and the number of tries that it took."""
        body = b'{"jobs":[' + b",".join(jobs) + b"]}"
        answer = await self.call("POST", "/v1/jobs/bulk", body=body)
        answers = self.decode(answer, BulkAnswers).jobs
        if len(answers) != len(jobs):
            raise self.not_a_gateway(answer.status)
        return answers, answer.num_tries

    async def ended(self, job_ids: Sequence[str], wait_s: float) -> EndedJobs:
        """Return those of some jobs that have ended once there are some, or after so many seconds."""
        body = msgspec.json.encode({"job_ids": job_ids, "wait_s": wait_s})
        return self.decode(await self.call("POST", "/v1/jobs/wait", body=body), EndedJobs)

    async def job(self, job_id: str) -> JobRecord:
        """Return a job as it stands."""
        return await self._ask("GET", _job_path(job_id), JobRecord)

    async def wait(self, job_id: str) -> JobRecord:
        """Return a job once it has ended."""
        while True:
            record = await self._ask("GET", f"{_job_path(job_id)}?wait_s={LONG_POLL_S:g}", JobRecord)
            if record.status in FINAL_STATUSES:
                return record

    async def jobs(self, status: JobStatus, limit: int | None = None) -> AsyncIterator[JobRecord]:
        """Yield jobs with one status, newest first."""
        query = {"status": status, "limit": str(min(limit or _PAGE, _PAGE))}
        num_left = limit
        while True:
            page = await self._ask("GET", f"/v1/jobs?{urlencode(query)}", JobList)
            for record in page.jobs[:num_left]:
                yield record
            num_left = None if num_left is None else num_left - len(page.jobs)
            if page.next is None or (num_left is not None and num_left <= 0):
                return
            query["after"] = page.next

    async def delete(self, job_id: str) -> JobRecord:
        """Ask for a job's end; a failed job is forgotten, and returned as it was."""
        return await self._ask("DELETE", _job_path(job_id), JobRecord)

    async def retry(self, job_id: str) -> JobRecord:
        """Retry a failed or cancelled job; waits while the queue is full."""
        return await self._ask("POST", f"{_job_path(job_id)}/retry", JobRecord)

    async def drain(self, worker: str) -> WorkerRecord:
        """Ask a worker to take no new sessions, finish those that it has, and end."""
        return await self._ask("POST", f"/v1/workers/{quote(worker, safe='')}/drain", WorkerRecord)

    async def status(self) -> PipelineStatus:
        """Return the state of the pipeline."""
        return await self._ask("GET", "/v1/status", PipelineStatus)

    async def _ask(self, method: str, path: str, body_type: type[Body]) -> Body:
        return self.decode(await self.call(method, path), body_type)


async def fetch_status(gateway_url: str, key: str | None = None) -> PipelineStatus:
    """Return the state of the pipeline behind a gateway, asking once; raises as `GatewayClient` does."""
    async with GatewayClient.open(gateway_url, patience_s=0.0, timeout_s=_STATUS_TIMEOUT_S, key=key) as client:
        return await client.status()


async def fetch_refusal(http: aiohttp.ClientSession, gateway_url: str) -> str | None:
    """Return why a gateway would have no job run, None where it would."""
    token = token_for(gateway_url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}  # only operators are told why
    try:
        async with http.get(f"{gateway_url}/readyz", headers=headers) as answer:
            return None if answer.status == 200 else f"{gateway_url}/readyz says {await answer.text()}"
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return f"{gateway_url}: {error or type(error).__name__}"


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
