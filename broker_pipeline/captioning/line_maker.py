"""Makes lines of what became of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from broker_pipeline.captioning.line import CaptionLine, Timings
from broker_pipeline.client.caption_request import CaptionRequest, Picture
from broker_pipeline.client.visual_params import VisualParams
from broker_pipeline.config import flag_of
from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobRecord, JobResult


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked about which item; `question` names it where several things are."""

    picture: Picture
    request: CaptionRequest
    question: str | None = None


@dataclass(frozen=True, slots=True)
class LineMaker:
    """Makes the lines of one run, which asks the model named `model`."""

    model: str | None = None

    def ended(self, asked: Asked, record: JobRecord) -> CaptionLine:
        """Return the line of a job that has ended."""
        result = record.result
        return self._line(
            asked,
            record.status,
            error=_error_of(record),
            timings=_timings(record),
            job_id=record.job_id,
            **(_of_result(result, is_caption=record.status == "succeeded") if result else {}),
        )

    def refused(self, asked: Asked, failure: Failure) -> CaptionLine:
        """Return the line of a picture that no job was made of."""
        return self._line(asked, "refused", error=by_flag(failure))

    def unreadable(self, asked: Asked, failure: Failure) -> CaptionLine:
        """Return the line of a file that could not be read."""
        return self._line(asked, "refused", error=failure)

    def _line(self, asked: Asked, status: str, **fields: Any) -> CaptionLine:
        request = asked.request
        if obeyed := fields.get("parameters"):
            fields["parameters"] = request.parameters | obeyed
        defaults: dict[str, Any] = {
            "model": self.model,
            "fingerprint": request.model or None,
            "parameters": request.parameters,
            "seed": request.sampling.seed,
        }
        return CaptionLine(
            path=asked.picture.path,
            sha256=asked.picture.sha256,
            question=asked.question,
            status=status,
            prompt=request.prompt,
            system=request.system,
            prompt_sha256=request.prompt_sha256,
            request=request.fingerprint,
            **(defaults | {name: value for name, value in fields.items() if value is not None}),
        )


def _of_result(result: JobResult, *, is_caption: bool) -> dict[str, Any]:
    """Return what a result says of itself: the model that computed it counts, not the one that was asked for."""
    sampling = result.sampling
    obeyed = msgspec.to_builtins(sampling) if sampling else None
    return {
        "caption": result.text if is_caption else None,
        "choices": result.choices if is_caption else (),
        "reasoning": result.reasoning or None,
        "finish_reason": result.finish_reason,
        "usage": result.usage,
        "model": result.model,
        "fingerprint": result.fingerprint,
        "parameters": obeyed and {"max_tokens": result.max_tokens, **obeyed},
        "seed": sampling.seed if sampling else None,
        "num_attempts": result.num_attempts,
    }


def _error_of(record: JobRecord) -> Failure | None:
    if record.status == "succeeded":
        return None
    if record.error is not None:
        return by_flag(record.error)
    return Failure("cancelled", "somebody cancelled the job") if record.status == "cancelled" else None


def _timings(record: JobRecord) -> Timings:
    started, finished = record.started_at, record.finished_at
    return Timings(
        created_at=record.created_at,
        finished_at=finished,
        queued_s=_seconds(record.created_at, started if started is not None else finished),
        running_s=_seconds(started, finished),
    )


def _seconds(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else round(max(0.0, stop - start), 4)


def by_flag(failure: Failure) -> Failure:
    """Name the flag where a gateway or a conductor has named a field of the request."""
    path = (failure.field or "").removeprefix("request.")
    name = path.removeprefix("sampling.")
    if (seen := path.rpartition(".")[2]) in VisualParams.__struct_fields__:
        name = seen
    elif name == path and name != "prompt":
        return failure
    flag = flag_of(name)
    return Failure(failure.code, f"{flag}: {failure.message}", flag, failure.retryable)
