"""What a comparison has done so far, in one file alongside its receipt: finished parts, and the hidden states.

The file is replaced as a whole after each step, so that an interruption at any time costs that step.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from export.parity.part import Part
from export.parity.receipt import peak_memory_bytes
from export.workspace import write_durably


class Progress:
    """Finished parts; the judge's visual rows `[r, H]` of all levels and hidden states `[n, H]` by scene."""

    def __init__(self, path: Path, key: str) -> None:
        """Go on from the file if it has this `key`, which says what is compared with what, by what."""
        self.path, self._key = path, key
        kept = _read(path, key)
        self.parts = msgspec.json.decode(kept.get("parts", "[]"), type=list[Part])
        self.rows: dict[str, list[Tensor]] = kept.get("rows", {})
        self.hidden: dict[str, Tensor] = kept.get("hidden", {})
        self._earlier_peak_bytes: int = kept.get("peak_memory_bytes", 0)

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that this run or one before it had resident."""
        return max(self._earlier_peak_bytes, peak_memory_bytes())

    def has(self, part: str) -> bool:
        """Say whether a part is finished."""
        return any(done.name == part for done in self.parts)

    def finish(self, parts: Iterable[Part]) -> None:
        """Keep finished parts, and what `rows` and `hidden` hold now."""
        self.parts.extend(parts)
        kept = {name: getattr(self, name) for name in ("rows", "hidden", "peak_memory_bytes")}
        content = io.BytesIO()
        torch.save(kept | {"key": self._key, "parts": msgspec.json.encode(self.parts).decode()}, content)
        write_durably(self.path, content.getvalue())


def _read(path: Path, key: str) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    except (FileNotFoundError, EOFError, pickle.UnpicklingError, RuntimeError):
        return {}  # what is damaged is computed again
    return kept if kept.get("key") == key else {}
