"""What the device has to be told of a microbatch, as one block of int32 that is copied in one go.

    positions T | H | W | slots | token ids | rows | starts | lengths | chunk offsets | chunk starts | chunk lengths
    └──────────── one for every token ────────┘ └ single-token segments ┘ └───── segments of several tokens ─────────┘

Segments of several tokens come first in a microbatch (the scheduler orders them so). Where they do not, single tokens
count as chunks of one, which is slower and means the same. Every section begins at a multiple of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stages.compute.attention import AttentionSpan

_ALIGNMENT = 4
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How many tokens, single rows and chunks a microbatch has."""

    num_tokens: int
    num_rows: int
    num_chunks: int

    def sections(self) -> dict[str, slice]:
        """Where each section lies."""
        chunk_ends = self.num_chunks + 1 if self.num_chunks else 0
        lengths = {
            **dict.fromkeys(("time", "height", "width", "slots", "token_ids"), self.num_tokens),
            **dict.fromkeys(("rows", "starts", "lengths"), self.num_rows),
            **dict.fromkeys(("chunk_offsets", "chunk_starts"), chunk_ends),
            "chunk_lengths": self.num_chunks,
        }
        sections, at = {}, 0
        for name, length in lengths.items():
            sections[name] = slice(at, at + length)
            at += -(-length // _ALIGNMENT) * _ALIGNMENT
        return sections

    @property
    def num_ints(self) -> int:
        """Length of the whole block."""
        stop: int = list(self.sections().values())[-1].stop
        return -(-stop // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The block on the host, and what kernels must know before they are launched."""

    sizes: StepSizes
    block: Ints
    num_chunk_tokens: int
    max_chunk: int
    max_chunk_keys: int


def step_inputs(
    spans: Sequence[AttentionSpan],
    positions: Tensor,
    token_ids: Tensor | None,
    *,
    every_token_alone: bool = False,
    padded_to: int | None = None,
    spare_slot: int = 0,
) -> StepInputs:
    """The block of a microbatch: `positions` int32 `[3, n]`, `token_ids` int32 `[n]` at the first stage.

    With `every_token_alone`, each token is a row that attends to what comes before it and to itself, whatever segment
    it is of. `padded_to` adds single rows of length 0 up to that many; they store their keys in `spare_slot`.
    """
    num_chunks = 0 if every_token_alone else _num_chunks(spans)
    chunks = spans[:num_chunks]
    rows, starts, lengths = _rows(spans[num_chunks:])
    num_tokens = padded_to or positions.shape[1]
    num_padding = num_tokens - positions.shape[1]
    sizes = StepSizes(num_tokens, len(rows) + num_padding, num_chunks)
    block, sections = np.zeros(sizes.num_ints, np.int32), sizes.sections()
    given = slice(0, positions.shape[1])
    for name, axis in zip(("time", "height", "width"), positions.numpy(), strict=True):
        block[sections[name]][given] = axis
    block[sections["slots"]] = spare_slot
    block[sections["slots"]][given] = np.concatenate([_slots(span) for span in spans])
    if token_ids is not None:
        block[sections["token_ids"]][given] = token_ids.numpy()
    block[sections["rows"]] = np.concatenate((rows, np.arange(positions.shape[1], num_tokens)))
    block[sections["starts"]][: len(rows)] = starts
    block[sections["lengths"]][: len(rows)] = lengths
    num_chunk_tokens = sum(span.num_queries for span in chunks)
    if chunks:
        block[sections["chunk_offsets"]] = [span.query_start for span in chunks] + [num_chunk_tokens]
        block[sections["chunk_starts"]] = [span.key_start for span in chunks] + [0]
        block[sections["chunk_lengths"]] = [span.num_keys for span in chunks]
    max_chunk = max((span.num_queries for span in chunks), default=0)
    return StepInputs(sizes, block, num_chunk_tokens, max_chunk, max((span.num_keys for span in chunks), default=0))


def _num_chunks(spans: Sequence[AttentionSpan]) -> int:
    """How many spans from the front are chunks: all up to the last one of several tokens."""
    return max((index + 1 for index, span in enumerate(spans) if span.num_queries > 1), default=0)


def _slots(span: AttentionSpan) -> Ints:
    return np.arange(span.keys.stop - span.num_queries, span.keys.stop, dtype=np.int32)


def _rows(spans: Sequence[AttentionSpan]) -> tuple[Ints, Ints, Ints]:
    """Row, start and length of every token of the spans."""
    if not spans:
        nothing = np.zeros(0, np.int32)
        return nothing, nothing, nothing
    counts = [span.num_queries for span in spans]
    rows = np.arange(spans[0].query_start, spans[0].query_start + sum(counts), dtype=np.int32)
    starts = np.repeat(np.array([span.key_start for span in spans], np.int32), counts)
    return rows, starts, np.concatenate([_slots(span) for span in spans]) + 1 - starts


@dataclass(frozen=True, slots=True)
class DeviceInputs:
    """The block on the device, as tensors by section; views of one buffer."""

    positions: tuple[Tensor, Tensor, Tensor]
    slots: Tensor
    token_ids: Tensor
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    chunk_offsets: Tensor
    chunk_starts: Tensor
    chunk_lengths: Tensor

    @classmethod
    def over(cls, buffer: Tensor, sizes: StepSizes) -> DeviceInputs:
        """Views of `buffer` int32 `[sizes.num_ints]`."""
        parts = {name: buffer[place] for name, place in sizes.sections().items()}
        axes = parts.pop("time"), parts.pop("height"), parts.pop("width")
        return cls(positions=axes, **parts)
