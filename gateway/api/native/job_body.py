"""The body of `POST /v1/jobs`: a form or JSON becomes a checked draft."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.grammars.rule import check_structured_outputs
from gateway.intake.job_draft import JobDraft, Source
from gateway.intake.job_limits import check_prompt, check_sampling
from gateway.intake.job_request import draft_job
from gateway.intake.multipart import job_request, read_form, sampling_path
from gateway.intake.request_reader import media_type, read_json
from gateway.intake.validation import decode_json
from gateway.schemas import JobRequest
from gateway.settings import Limits

SAMPLING_PATH = "sampling."


async def read_job(request: web.Request, limits: Limits) -> JobDraft:
    """Read a request for a job and check it."""
    job, media, where = await _parse(request, limits)
    return await checked_draft(job, media, limits, where)


async def checked_draft(job: JobRequest, media: tuple[Source, ...], limits: Limits, where: str) -> JobDraft:
    """Check a request; `media` came alongside it, and `where` stands before the names of its sampling fields."""
    draft = draft_job(job, media, limits)
    check_sampling(draft, limits, where)
    if (form := draft.sampling.structured_outputs) is not None:
        await asyncio.to_thread(check_structured_outputs, form, f"{where}structured_outputs")
    check_prompt(draft, limits)
    return draft


async def _parse(request: web.Request, limits: Limits) -> tuple[JobRequest, tuple[Source, ...], str]:
    """Return the request, what came alongside it, and what stands before the names of its sampling fields."""
    sent = media_type(request)
    if sent == "multipart/form-data":
        form = await read_form(request, limits)
        return job_request(form), form.media, sampling_path(form)
    if sent != "application/json":
        raise InvalidRequestError(f"send multipart/form-data or application/json, not {sent}", field="Content-Type")
    return await read_json(request, limits, partial(decode_json, body_type=JobRequest)), (), SAMPLING_PATH
