"""What a batch has to know of the API that its requests are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobRecord, JobSpec, TokenEntry
from gateway.intake.job_draft import JobDraft
from gateway.settings import Limits


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint, free of HTTP."""

    parse: Callable[[bytes, Limits], JobDraft]
    """Makes a checked draft of a body; raises `InvalidRequestError`, or another error that says why there is none."""
    answer: Callable[[JobSpec, JobRecord, Sequence[TokenEntry]], msgspec.Struct]
    """Makes the body of an answer of a job that succeeded; it has its tokens where log-probabilities were asked for."""
    refusal: Callable[[Failure], tuple[int, msgspec.Struct]]
    """Makes status and body of the answer that says what failed."""
