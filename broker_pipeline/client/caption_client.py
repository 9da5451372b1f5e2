"""Talks to a gateway: submits pictures and waits for their captions, through restarts of the gateway.

Everything it sends may be sent twice: submissions carry an idempotency key, the rest only asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord

LONG_POLL_S = 20.0


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submission that the gateway took. `is_repeat`: it knew it already; `num_tries` counts our own."""

    record: JobRecord
    is_repeat: bool
    num_tries: int


class CaptionClient(GatewayClient):
    """A client that has pictures captioned. Made by `open`."""

    async def submit(self, content: bytes, request: CaptionRequest, key: str) -> Submitted:
        """Submit one picture. Waits while the queue is full.

        Raises `GatewayUnreachableError`, or the error that the gateway answered with.
        """

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData(default_to_multipart=True)
            data.add_field("request", request.as_json().decode(), content_type="application/json")
            data.add_field("image", content, filename="picture", content_type="application/octet-stream")
            return data

        answer = await self.call("POST", "/v1/jobs", form=form, headers={"Idempotency-Key": key})
        return Submitted(
            self.decode(answer, JobRecord), answer.headers.get("Idempotent-Replayed") == "true", answer.num_tries
        )

    async def get(self, job_id: str) -> JobRecord:
        """Return a job as it stands; raises `JobNotFoundError`."""
        return self.decode(await self.call("GET", f"/v1/jobs/{job_id}"), JobRecord)

    async def wait(self, job_id: str) -> JobRecord:
        """Return a job once it has finished; raises `JobNotFoundError` when the gateway does not know it (any more)."""
        while True:
            answer = await self.call("GET", f"/v1/jobs/{job_id}?wait_s={LONG_POLL_S:g}")
            record = self.decode(answer, JobRecord)
            if record.status in FINAL_STATUSES:
                return record

    async def cancel(self, job_id: str) -> JobRecord:
        """Ask for a job's end; raises `JobNotFoundError`."""
        return self.decode(await self.call("DELETE", f"/v1/jobs/{job_id}"), JobRecord)
