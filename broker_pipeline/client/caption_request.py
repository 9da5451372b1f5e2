"""What is asked about every picture of a run, and how that is told apart from other runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from broker_pipeline.messages.sampling import SamplingParams

_MODEL_DEFAULTS = SamplingParams()


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """A prompt (None: the gateway's default) and how to sample."""

    prompt: str | None = None
    sampling: SamplingParams = _MODEL_DEFAULTS

    def as_json(self) -> bytes:
        """Return the request as `POST /v1/jobs` takes it, without the picture."""
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        return msgspec.json.encode({**prompt, "sampling": self.sampling})

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the prompt and with every parameter."""
        return hashlib.sha256(self.as_json()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Picture:
    """One file as it was read: its path as typed, its bytes' hash."""

    path: Path
    sha256: str

    def identity(self, request: CaptionRequest) -> tuple[str, str, str]:
        """Return what makes a caption of this picture the same caption: path, content, request."""
        return str(self.path), self.sha256, request.fingerprint


def idempotency_key(picture: Picture, request: CaptionRequest, num_failures: int) -> str:
    """Return the key under which the gateway knows this submission.

    It depends on nothing but what is asked, so that whoever asks again after a crash gets the first job, and on the
    number of failures so far, so that asking again after a failure is a new job.
    """
    path, sha256, fingerprint = picture.identity(request)
    text = json.dumps([str(Path(path).absolute()), sha256, fingerprint, num_failures])
    return f"caption-{hashlib.sha256(text.encode()).hexdigest()}"
