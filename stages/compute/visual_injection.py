"""Visual rows put into the hidden states of a microbatch.

The spans of a segment say which of its tokens are visual, and which visual rows are theirs in this prefill chunk:

    packed tokens   [ t t v v v t | t | v v ]        index  [2 3 4 7 8]
    visual rows     [ r0 r1 r2 r3 … ]                 rows   [a.r0 a.r1 a.r2 c.r9 c.r10]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from broker_pipeline.errors import TensorMismatchError, VisualRowsMissingError
from broker_pipeline.messages.activation import Segment
from stages.compute.microbatch import SessionKey, key_of
from stages.compute.visual_row_buffer import VisualRowBuffer, VisualRows
from stages.device.host_copy import to_device


@dataclass(frozen=True, slots=True)
class VisualRowNeeds:
    """What one stage needs of every picture: the merged embeddings, and the DeepStack rows of its own layers."""

    embeds: bool
    levels: tuple[int, ...]

    def __bool__(self) -> bool:
        return self.embeds or bool(self.levels)


@dataclass(frozen=True, slots=True)
class VisualInjection:
    """`index` int64 `[nv]` of visual tokens in the microbatch; `embeds` and each level `[nv, H]`, row by row theirs.

    `places` is the index once more, on the host.
    """

    index: Tensor
    embeds: Tensor | None
    levels: Mapping[int, Tensor]
    places: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def replace(self, x: Tensor) -> Tensor:
        """Put visual rows, at the first stage, in place of the pad tokens' embeddings."""
        return x if self.embeds is None else x.index_copy(0, self.index, self.embeds.to(x.dtype))

    def add(self, x: Tensor, layer: int) -> Tensor:
        """Add, after decoder layer `layer`, the visual rows of that DeepStack level, in the activation dtype."""
        if layer not in self.levels:
            return x
        return x.index_copy(0, self.index, x[self.index] + self.levels[layer].to(x.dtype))


def find_visual_rows(segment: Segment, needs: VisualRowNeeds, buffer: VisualRowBuffer, width: int) -> VisualRows | None:
    """Return the visual rows for a segment's spans, of the hidden states' width; None if it needs none on this stage.

    Raises:
        VisualRowsMissingError: they were never delivered, are dropped, or are fewer than the spans say.
        TensorMismatchError: a span leaves its segment, or they have another width.
    """
    if not segment.visual or not needs:
        return None
    found = buffer.find(segment.session, segment.attempt)
    needed = max(span.row + span.count for span in segment.visual)
    for name, tensor in _needed_tensors(found, needs).items():
        if tensor is None or tensor.shape[0] < needed:
            raise VisualRowsMissingError(f"session {segment.session} needs {needed} visual rows in {name}")
        if tensor.dim() != 2 or tensor.shape[1] != width:
            raise TensorMismatchError(f"{name} has shape {tuple(tensor.shape)}; visual rows have {width} channels")
    if any(span.offset + span.count > segment.count for span in segment.visual):
        raise TensorMismatchError(f"a visual span of session {segment.session} leaves its segment")
    return found


def _needed_tensors(found: VisualRows, needs: VisualRowNeeds) -> dict[str, Tensor | None]:
    named = {f"deepstack.{level}": found.levels.get(level) for level in needs.levels}
    return named | ({"embeds": found.embeds} if needs.embeds else {})


def gather_injection(
    segments: Sequence[Segment], needs: VisualRowNeeds, found: Mapping[SessionKey, VisualRows], device: torch.device
) -> VisualInjection | None:
    """Return the visual rows of all spans in a microbatch, out of those `found` for its segments; None if nothing."""
    if not found:
        return None
    index: list[Tensor] = []
    picked: dict[str, list[Tensor]] = {}
    first = 0
    for segment in segments:
        for span in segment.visual:
            needed = _needed_tensors(found[key_of(segment)], needs)
            index.append(torch.arange(first + span.offset, first + span.offset + span.count))
            for name, tensor in needed.items():
                assert tensor is not None, "find_visual_rows has checked it"
                picked.setdefault(name, []).append(tensor[span.row : span.row + span.count])
        first += segment.count
    joined = {name: torch.cat([_on_device(part, device) for part in parts]) for name, parts in picked.items()}
    levels = {level: joined[f"deepstack.{level}"] for level in needs.levels}
    places = torch.cat(index)
    on_host = places.numpy().astype(np.int32)
    return VisualInjection(to_device(places, device), joined.get("embeds"), levels, on_host)


def _on_device(part: Tensor, device: torch.device) -> Tensor:
    """Return visual rows where they are needed; those that another stream made are kept until we have read them."""
    if part.device.type == "cuda":
        part.record_stream(torch.cuda.current_stream(part.device))
        return part
    return to_device(part, device)
