"""Which segments of a microbatch a stage can compute, and why it cannot the others.

Every segment is judged on its own, so that what is wrong with one session stops nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from broker_pipeline.errors import PipelineError, TensorMismatchError
from broker_pipeline.messages.activation import Segment
from stages.compute.kv.cache import KVCache
from stages.compute.microbatch import Microbatch, SessionKey, key_of
from stages.compute.visual_injection import VisualRowNeeds, find_visual_rows
from stages.compute.visual_row_buffer import VisualRowBuffer, VisualRows
from stages.qwen3_vl.text_config import TextConfig


@dataclass(frozen=True, slots=True)
class SegmentAdmission:
    """`batch` holds the segments to compute, `visual_rows` what they use of them."""

    batch: Microbatch
    repeats: tuple[Segment, ...]
    failures: tuple[tuple[Segment, PipelineError], ...]
    visual_rows: dict[SessionKey, VisualRows]


class Admitter:
    """Judges segments against a stage's KV, its visual rows and its vocabulary. Of these, only the regions of sessions
    change, which grow where segments say so.
    """

    def __init__(self, config: TextConfig, needs: VisualRowNeeds, kv: KVCache, buffer: VisualRowBuffer) -> None:
        self._config = config
        self._needs = needs
        self._kv = kv
        self._buffer = buffer

    def admit(self, batch: Microbatch) -> SegmentAdmission:
        """Sort a microbatch's segments into those to compute, repeats, and failures."""
        admitted: list[Segment] = []
        repeats: list[Segment] = []
        failures: list[tuple[Segment, PipelineError]] = []
        visual_rows: dict[SessionKey, VisualRows] = {}
        lengths: dict[SessionKey, int] = {}  # what earlier segments of this microbatch will have written
        for segment, token_ids in self._with_doubtful_tokens(batch):
            key = key_of(segment)
            stop = segment.start + segment.count
            try:
                if stop - segment.num_drafts <= self._kv.settled_length(key):
                    repeats.append(segment)  # it has been computed before, under the same attempt
                    continue
                if segment.num_kv_tokens:
                    self._kv.grow(key, segment.num_kv_tokens)
                found = self._require(segment, token_ids, lengths.get(key))
            except PipelineError as error:
                failures.append((segment, error))
                continue
            admitted.append(segment)
            lengths[key] = stop
            if found is not None:
                visual_rows[key] = found
        return SegmentAdmission(_select(batch, admitted), tuple(repeats), tuple(failures), visual_rows)

    def _require(self, segment: Segment, token_ids: Tensor | None, length: int | None) -> VisualRows | None:
        """Return the segment's visual rows, or raise why it cannot be computed behind `length` tokens, or what is
        cached.
        """
        self._kv.require(key_of(segment), segment.start, segment.count, length=length)
        if token_ids is not None:
            self._require_vocabulary(segment, token_ids)
        if not segment.visual:
            return None
        return find_visual_rows(segment, self._needs, self._buffer, self._config.hidden_size)

    def _with_doubtful_tokens(self, batch: Microbatch) -> Iterator[tuple[Segment, Tensor | None]]:
        """Yield each segment, with its token ids where one of the microbatch's leaves the vocabulary."""
        ids = batch.token_ids
        if ids is None or not len(ids) or self._is_in_vocabulary(ids):
            return zip(batch.segments, repeat(None), strict=False)
        return zip(batch.segments, torch.split(ids, [segment.count for segment in batch.segments]), strict=True)

    def _is_in_vocabulary(self, token_ids: Tensor) -> bool:
        low, high = token_ids.aminmax()
        return bool(low >= 0 and high < self._config.vocab_size)

    def _require_vocabulary(self, segment: Segment, token_ids: Tensor) -> None:
        if not self._is_in_vocabulary(token_ids):
            raise TensorMismatchError(
                f"token ids of session {segment.session} leave the vocabulary of {self._config.vocab_size}",
                field="token_ids",
            )


def check_tensors(batch: Microbatch, *, hidden_size: int, dtype: torch.dtype, is_first: bool) -> None:
    """Raise TensorMismatchError unless the tensors fit the segments, the model and the stage's place in it."""
    n = batch.num_tokens
    _require("positions", batch.positions, (3, n), torch.int32)
    if is_first:
        _require("token_ids", batch.token_ids, (n,), torch.int32)
    else:
        _require("hidden", batch.hidden, (n, hidden_size), dtype)


def _require(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor is None:
        raise TensorMismatchError(f"this stage needs {name} {list(shape)} {dtype}; there is none", field=name)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise TensorMismatchError(
            f"{name} is {list(tensor.shape)} {tensor.dtype}; this stage needs {list(shape)} {dtype}", field=name
        )


def _select(batch: Microbatch, admitted: Sequence[Segment]) -> Microbatch:
    """Return the microbatch with only the admitted segments and their tokens."""
    if len(admitted) == len(batch.segments):
        return batch
    kept = {id(segment) for segment in admitted}
    mask = torch.cat([torch.full((segment.count,), id(segment) in kept) for segment in batch.segments])
    return Microbatch(
        segments=tuple(admitted),
        positions=batch.positions[:, mask.to(batch.positions.device)],
        token_ids=None if batch.token_ids is None else batch.token_ids[mask.to(batch.token_ids.device)],
        hidden=None if batch.hidden is None else batch.hidden[mask.to(batch.hidden.device)],
    )
