"""What is asked about every picture of a run, of which model, and how that is told apart from other runs."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from broker_pipeline.messages.jobs import DEFAULT_PROMPT
from broker_pipeline.messages.sampling import SamplingParams

_MODEL_DEFAULTS = SamplingParams()


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """A prompt (None: the gateway's default), how to sample, and the fingerprint of the model that is to answer."""

    prompt: str | None = None
    sampling: SamplingParams = _MODEL_DEFAULTS
    model: str = ""
    occasion: str = ""
    """Tells a run that asks anew from all others; empty for one that takes what there is."""

    def as_json(self) -> bytes:
        """Return the request as `POST /v1/jobs` takes it, without the picture."""
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        return msgspec.json.encode({**prompt, "sampling": self.sampling})

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the prompt and with every parameter."""
        return hashlib.sha256(self.as_json()).hexdigest()[:16]

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt's text, of the default where none is given."""
        prompt = DEFAULT_PROMPT if self.prompt is None else self.prompt
        return hashlib.sha256(prompt.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Picture:
    """One file as it was read: its path as typed, its bytes' hash."""

    path: Path
    sha256: str


def idempotency_key(picture: Picture, request: CaptionRequest, num_failures: int) -> str:
    """Return the key under which the gateway knows this submission.

    It depends on nothing but what is asked of which model, so that whoever asks again after a crash gets the first job,
    and on the number of failures so far, so that asking again after a failure is a new job.
    """
    asked = [request.model, request.prompt_sha256, request.fingerprint, request.occasion, num_failures]
    text = json.dumps([os.path.realpath(picture.path), picture.sha256, *asked])
    return f"caption-{hashlib.sha256(text.encode()).hexdigest()}"
