"""Asks a gateway for what operators need: failed jobs, workers to be drained, the pipeline's state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode

import msgspec

from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.client.status_client import PipelineStatus
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord, JobStatus
from broker_pipeline.messages.workers import WorkerRecord

_PAGE = 500
_LONG_POLL_S = 20.0


class _Page(msgspec.Struct, frozen=True):
    jobs: tuple[JobRecord, ...]
    next: str | None


class OperatorClient(GatewayClient):
    """A client for operators. Made by `open`. Job ids and names that do not exist raise the gateway's typed errors."""

    async def jobs(self, status: JobStatus, limit: int | None = None) -> AsyncIterator[JobRecord]:
        """Yield jobs with one status, newest first."""
        query = {"status": status, "limit": str(min(limit or _PAGE, _PAGE))}
        num_left = limit
        while True:
            page = self.decode(await self.call("GET", f"/v1/jobs?{urlencode(query)}"), _Page)
            for record in page.jobs[:num_left]:
                yield record
            num_left = None if num_left is None else num_left - len(page.jobs)
            if page.next is None or (num_left is not None and num_left <= 0):
                return
            query["after"] = page.next

    async def job(self, job_id: str) -> JobRecord:
        """Return a job as it stands."""
        return self.decode(await self.call("GET", _job_path(job_id)), JobRecord)

    async def wait(self, job_id: str) -> JobRecord:
        """Return a job once it has ended."""
        while True:
            answer = await self.call("GET", f"{_job_path(job_id)}?wait_s={_LONG_POLL_S:g}")
            if (record := self.decode(answer, JobRecord)).status in FINAL_STATUSES:
                return record

    async def retry(self, job_id: str) -> JobRecord:
        """Send a failed or cancelled job again; waits while the queue is full."""
        return self.decode(await self.call("POST", f"{_job_path(job_id)}/retry"), JobRecord)

    async def discard(self, job_id: str) -> JobRecord:
        """Forget a failed job and return what it was."""
        return self.decode(await self.call("DELETE", _job_path(job_id)), JobRecord)

    async def drain(self, worker: str) -> WorkerRecord:
        """Ask a worker to take no new sessions, finish those that it has, and end."""
        return self.decode(await self.call("POST", f"/v1/workers/{quote(worker, safe='')}/drain"), WorkerRecord)

    async def status(self) -> PipelineStatus:
        """Return the state of the pipeline."""
        return self.decode(await self.call("GET", "/v1/status"), PipelineStatus)


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
