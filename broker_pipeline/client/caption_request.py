"""What is asked about every picture of a run, of which model, and how that is told apart from other runs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from broker_pipeline.client.visual_params import AS_THE_MODEL_HAS_IT, VisualParams
from broker_pipeline.messages.jobs import DEFAULT_PROMPT, Priority
from broker_pipeline.messages.sampling import MODEL_DEFAULTS, SamplingParams


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """A prompt (None: the gateway's default), how to sample, and the fingerprint of the model that is to answer."""

    prompt: str | None = None
    sampling: SamplingParams = MODEL_DEFAULTS
    model: str = ""
    system: str | None = None
    """What the model is told before the prompt; None for nothing."""
    occasion: str = ""
    """Tells a run that asks anew from all others; empty for one that takes what there is."""
    priority: Priority = "interactive"
    visual: VisualParams = AS_THE_MODEL_HAS_IT

    def about(self, *, is_video: bool) -> CaptionRequest:
        """Return what is asked about a video, or about a picture: what is said of the other kind is not in it."""
        return replace(self, visual=self.visual.of(is_video=is_video))

    @property
    def parameters(self) -> dict[str, Any]:
        """What was said of sampling and seeing, by name."""
        return {**msgspec.to_builtins(self.sampling), **msgspec.to_builtins(self.visual)}

    def as_json(self) -> bytes:
        """Return the request as the form of `POST /v1/jobs` takes it, without the picture."""
        return msgspec.json.encode({**self._asked, "priority": self.priority})

    def as_bulk_job(self, url: str, key: str, *, is_video: bool = False) -> bytes:
        """Return the request as one of `POST /v1/jobs/bulk`, with the URL of a picture or video, and a key."""
        text = DEFAULT_PROMPT if self.prompt is None else self.prompt
        told: list[dict[str, object]] = [] if self.system is None else [{"role": "system", "content": self.system}]
        media = {"type": "video" if is_video else "image", "url": url, **msgspec.to_builtins(self.visual)}
        asked = {"role": "user", "content": [media, {"type": "text", "text": text}]}
        return msgspec.json.encode(
            {
                "messages": [*told, asked],
                "sampling": self.sampling,
                "priority": self.priority,
                "idempotency_key": key,
            }
        )

    @property
    def _asked(self) -> dict[str, object]:
        texts = {name: text for name in ("prompt", "system") if (text := getattr(self, name)) is not None}
        return {**texts, "sampling": self.sampling, **msgspec.to_builtins(self.visual)}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the prompt and with every parameter."""
        return hashlib.sha256(msgspec.json.encode(self._asked)).hexdigest()[:16]

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt's text, of the default where none is given."""
        prompt = DEFAULT_PROMPT if self.prompt is None else self.prompt
        return hashlib.sha256(prompt.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Picture:
    """One item as it was read: its path as typed, or what it is called otherwise, and its bytes' hash."""

    path: str
    sha256: str

    @property
    def place(self) -> str:
        """Where it really is: the same by whatever way a path leads there."""
        return real_place(self.path)


def real_place(path: str) -> str:
    """Return where a path leads; what is no path is its own place."""
    if "://" in path:
        return path
    folder, name = os.path.split(path)
    real = _real_folder(folder) / name
    try:
        return os.path.realpath(real) if real.is_symlink() else str(real)
    except OSError:  # a path that is too long for the system
        return path


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> Path:
    return Path(os.path.realpath(folder))


def idempotency_key(picture: Picture, request: CaptionRequest, num_failures: int) -> str:
    """Return the key under which the gateway knows this submission.

    It depends on nothing but what is asked of which model, so that whoever asks again after a crash gets the first job,
    and on the number of failures so far, so that asking again after a failure is a new job.
    """
    asked = [request.model, request.prompt_sha256, request.fingerprint, request.occasion, num_failures]
    text = json.dumps([picture.place, picture.sha256, *asked])
    return f"caption-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
