"""Rows as a run makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker_pipeline.captioning.line import CaptionLine, Timings
from broker_pipeline.captioning.sinks.row import Row
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import Usage
from tests.kit.pictures import picture


def line(path: str = "a.png", caption: str | None = "a red bicycle", **fields: Any) -> CaptionLine:
    defaults: dict[str, Any] = {
        "path": path,
        "sha256": "0" * 64,
        "status": "succeeded",
        "caption": caption,
        "finish_reason": "stop",
        "usage": Usage(num_prompt_tokens=300, num_visual_tokens=256, num_output_tokens=40),
        "timings": Timings(queued_s=0.5, running_s=2.0),
        "model": "qwen3-vl",
        "fingerprint": "f" * 64,
        "prompt": "Describe this.",
        "request": "1" * 64,
    }
    return CaptionLine(**(defaults | fields))


def failed(path: str = "a.png", code: str = "compute", message: str = "out of memory", **fields: Any) -> CaptionLine:
    return line(path, **({"caption": None, "status": "failed", "error": Failure(code, message)} | fields))


def row(*lines: CaptionLine, id: str = "a.png", read: Callable[[], bytes] | None = None, **fields: Any) -> Row:
    item = Item(id, read or (lambda: picture(1)), **fields)
    return Row(item, {each.question or "caption": each for each in lines or (line(id),)})
