"""Visual rows put into the hidden states of a microbatch.

The spans of a segment say which of its tokens are visual and which rows are theirs, windowed to this prefill chunk:

    packed tokens   [ t t v v v t | t | v v ]        index  [2 3 4 7 8]
    rows of a       [ r0 r1 r2 r3 … ]                 rows   [a.r0 a.r1 a.r2 c.r9 c.r10]
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
from stages.compute.microbatch import Rows, RowSource, SessionKey, key_of
from stages.device.host_copy import to_device


@dataclass(frozen=True, slots=True)
class RowNeeds:
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
        """The first stage: rows in place of the pad tokens' embeddings."""
        return x if self.embeds is None else x.index_copy(0, self.index, self.embeds.to(x.dtype))

    def add(self, x: Tensor, layer: int) -> Tensor:
        """After decoder layer `layer`: the DeepStack rows of that level on top, in the activation dtype."""
        if layer not in self.levels:
            return x
        return x.index_copy(0, self.index, x[self.index] + self.levels[layer].to(x.dtype))


def find_rows(segment: Segment, needs: RowNeeds, source: RowSource, width: int) -> Rows | None:
    """The rows for a segment's visual spans, of the hidden states' width; None if it needs none on this stage.

    Raises:
        VisualRowsMissingError: rows were never delivered, are dropped, or are fewer than the spans say.
        TensorMismatchError: a span leaves its segment, or rows have another width.
    """
    if not segment.visual or not needs:
        return None
    rows = source.find(segment.session, segment.attempt)
    needed = max(span.row + span.count for span in segment.visual)
    for name, tensor in _needed_tensors(rows, needs).items():
        if tensor is None or tensor.shape[0] < needed:
            raise VisualRowsMissingError(f"session {segment.session} needs {needed} visual rows in {name}")
        if tensor.dim() != 2 or tensor.shape[1] != width:
            raise TensorMismatchError(f"{name} has shape {tuple(tensor.shape)}; rows have {width} channels")
    if any(span.offset + span.count > segment.count for span in segment.visual):
        raise TensorMismatchError(f"a visual span of session {segment.session} leaves its segment")
    return rows


def _needed_tensors(rows: Rows, needs: RowNeeds) -> dict[str, Tensor | None]:
    named = {f"deepstack.{level}": rows.levels.get(level) for level in needs.levels}
    return named | ({"embeds": rows.embeds} if needs.embeds else {})


def gather_injection(
    segments: Sequence[Segment], needs: RowNeeds, found: Mapping[SessionKey, Rows], device: torch.device
) -> VisualInjection | None:
    """The rows of all visual spans in a microbatch, out of what `find_rows` found; None if that is nothing."""
    if not found:
        return None
    index: list[Tensor] = []
    picked: dict[str, list[Tensor]] = {}
    first = 0
    for segment in segments:
        for span in segment.visual:
            rows = _needed_tensors(found[key_of(segment)], needs)
            index.append(torch.arange(first + span.offset, first + span.offset + span.count))
            for name, tensor in rows.items():
                assert tensor is not None, "find_rows has checked it"
                picked.setdefault(name, []).append(tensor[span.row : span.row + span.count])
        first += segment.count
    joined = {name: torch.cat([_on_device(part, device) for part in parts]) for name, parts in picked.items()}
    levels = {level: joined[f"deepstack.{level}"] for level in needs.levels}
    places = torch.cat(index)
    on_host = places.numpy().astype(np.int32)
    return VisualInjection(to_device(places, device), joined.get("embeds"), levels, on_host)


def _on_device(rows: Tensor, device: torch.device) -> Tensor:
    """Rows where they are computed with; those that another stream of this device made are kept until we have read."""
    if rows.device.type == "cuda":
        rows.record_stream(torch.cuda.current_stream(rows.device))
        return rows
    return to_device(rows, device)
