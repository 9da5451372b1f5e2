"""What the device has to be told of a microbatch, as one block of int32 that is copied in one go.

    positions T | H | W | slots | token ids | visual | places | starts | lengths | chunk offsets | starts | lengths | …
    └─────────────── one for every token ──────────┘ └───── decode tokens ─────┘ └───────── chunks ───────────┘   wanted

Chunks have several tokens, are cut into tiles, and come first in a microbatch (the scheduler orders them so). Where
they do not, single tokens before one count as chunks of one, which is slower and means the same. Every section begins
at a multiple of 16 bytes, and may be longer than what is known, for steps of a fixed size:

    tokens beyond     store keys where nobody reads, and see nothing: a decode token of length 0
    decode beyond     is -1: nobody's
    chunks beyond     have no tokens
    visual beyond     is -1: nobody's
    wanted beyond     is the first token
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stages.kernels.flash_attention import QUERIES_PER_TILE
from stages.qwen3_vl.attention import AttentionSpan

_ALIGNMENT = 4
_FEWEST_TILES = 4
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How long the sections are."""

    num_tokens: int
    num_decode_tokens: int
    num_chunks: int = 0
    num_visual: int = 0
    num_wanted: int = 0

    def sections(self) -> Mapping[str, slice]:
        """Say where each section lies."""
        return _sections(self)

    @property
    def num_ints(self) -> int:
        """Length of the whole block."""
        stop: int = list(self.sections().values())[-1].stop
        return -(-stop // _ALIGNMENT) * _ALIGNMENT


@lru_cache(maxsize=256)
def _sections(sizes: StepSizes) -> Mapping[str, slice]:
    chunk_ends = sizes.num_chunks + 1 if sizes.num_chunks else 0
    lengths = {
        **dict.fromkeys(("time", "height", "width", "slots", "token_ids"), sizes.num_tokens),
        "visual": sizes.num_visual,
        **dict.fromkeys(("decode_tokens", "starts", "lengths"), sizes.num_decode_tokens),
        **dict.fromkeys(("chunk_offsets", "chunk_starts"), chunk_ends),
        "chunk_lengths": sizes.num_chunks,
        "wanted": sizes.num_wanted,
    }
    sections, at = {}, 0
    for name, length in lengths.items():
        sections[name] = slice(at, at + length)
        at += -(-length // _ALIGNMENT) * _ALIGNMENT
    return MappingProxyType(sections)


@dataclass(frozen=True, slots=True)
class TileRule:
    """How chunks are cut: into tiles of `num_queries`, counted from a chunk's first token or from its session's."""

    num_queries: int = QUERIES_PER_TILE
    is_aligned: bool = False

    def cuts(self, chunk: AttentionSpan) -> list[int]:
        """Return where tiles of a chunk begin, among its tokens, and where the last one ends."""
        first = -((chunk.num_keys - chunk.num_queries) % self.num_queries) if self.is_aligned else 0
        return [0, *range(first + self.num_queries, chunk.num_queries, self.num_queries), chunk.num_queries]

    def most_tiles(self, num_tokens: int) -> int:
        """Return for how many tiles a pass of so many tokens has room: of half the size on average, and a few."""
        return _FEWEST_TILES + -(-2 * num_tokens // self.num_queries)


@dataclass(frozen=True, slots=True)
class Layout:
    """A microbatch's tokens sorted into chunks and decode tokens.

    `chunks` are the tiles of them, in order: each sees what is before it in its segment, and itself.
    `decode_tokens`, `starts` and `lengths` say of each of these where it is and what it sees: whatever segment it is
    of, what comes before it there and itself.
    """

    slots: Ints
    chunks: tuple[AttentionSpan, ...]
    decode_tokens: Ints
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, spans: Sequence[AttentionSpan], rule: TileRule | None = None) -> Layout:
        """Sort the tokens of segments at these places, and cut chunks by a rule; by default for flash attention."""
        num_chunks = _num_chunks(spans)
        first, counts, starts, num_keys = np.fromiter(chain.from_iterable(spans), np.int32).reshape(-1, 4).T
        within = np.arange(counts.sum(), dtype=np.int32) - np.repeat(first, counts)
        slots = np.repeat(starts + num_keys - counts, counts) + within
        tail = first[num_chunks] if num_chunks < len(spans) else len(slots)
        key_starts = np.repeat(starts[num_chunks:], counts[num_chunks:])
        decode_tokens = np.arange(tail, len(slots), dtype=np.int32)
        return cls(
            slots,
            _tiles(spans[:num_chunks], rule or TileRule()),
            decode_tokens,
            key_starts,
            slots[tail:] + 1 - key_starts,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments."""
        return len(self.slots)

    @property
    def num_chunk_tokens(self) -> int:
        """Tokens of chunks, all before the first decode token."""
        return sum(span.num_queries for span in self.chunks)

    @property
    def max_chunk_keys(self) -> int:
        """Keys that the tile with most of them sees; 0 where there are no chunks."""
        return max((span.num_keys for span in self.chunks), default=0)

    def sizes(self) -> StepSizes:
        """Return sections without anything beyond."""
        return StepSizes(self.num_tokens, len(self.decode_tokens), len(self.chunks))


def step_block(
    layout: Layout,
    sizes: StepSizes,
    positions: Tensor,
    token_ids: Tensor | None = None,
    *,
    spare_slot: int = 0,
    visual: Ints | None = None,
    wanted: Sequence[int] = (),
    out: Ints | None = None,
) -> Ints:
    """Return the block int32 `[sizes.num_ints]` for `positions` int32 `[3, n]` and `token_ids` int32 `[n]`, if any.

    It is written to the beginning of `out` where that is given.
    """
    sections = sizes.sections()
    block = np.zeros(sizes.num_ints, np.int32) if out is None else out[: sizes.num_ints]

    def fill(name: str, values: Ints | Sequence[int], beyond: int = 0) -> None:
        section, num_given = block[sections[name]], len(values)
        section[:num_given] = values
        section[num_given:] = beyond

    for name, axis in zip(("time", "height", "width"), positions.numpy(), strict=True):
        fill(name, axis)
    fill("slots", layout.slots, beyond=spare_slot)
    if token_ids is not None:
        fill("token_ids", token_ids.numpy())
    fill("visual", () if visual is None else visual, beyond=-1)
    beyond = np.arange(layout.num_tokens, sizes.num_tokens, dtype=np.int32)
    decode_tokens = np.concatenate((layout.decode_tokens, beyond)) if len(beyond) else layout.decode_tokens
    fill("decode_tokens", decode_tokens, beyond=-1)
    fill("starts", layout.starts)
    fill("lengths", layout.lengths)
    if sizes.num_chunks:
        fill("chunk_offsets", [span.query_start for span in layout.chunks], beyond=layout.num_chunk_tokens)
        fill("chunk_starts", [span.key_start for span in layout.chunks])
        fill("chunk_lengths", [span.num_keys for span in layout.chunks])
    fill("wanted", wanted)
    return block


def _tiles(chunks: Sequence[AttentionSpan], rule: TileRule) -> tuple[AttentionSpan, ...]:
    """Cut chunks into tiles, so that the grid of attention depends on how many tokens there are and on nothing else."""
    return tuple(
        AttentionSpan(
            chunk.query_start + first,
            stop - first,
            chunk.key_start,
            chunk.num_keys - chunk.num_queries + stop,
        )
        for chunk in chunks
        for first, stop in pairwise(rule.cuts(chunk))
    )


def _num_chunks(spans: Sequence[AttentionSpan]) -> int:
    """Count the spans at the front that are chunks: all up to the last one of several tokens."""
    return max((index + 1 for index, span in enumerate(spans) if span.num_queries > 1), default=0)


@dataclass(frozen=True, slots=True)
class DeviceInputs:
    """The block on the device, as tensors by section; views of one buffer."""

    positions: tuple[Tensor, Tensor, Tensor]
    slots: Tensor
    token_ids: Tensor
    visual: Tensor
    decode_tokens: Tensor
    starts: Tensor
    lengths: Tensor
    chunk_offsets: Tensor
    chunk_starts: Tensor
    chunk_lengths: Tensor
    wanted: Tensor

    @classmethod
    def over(cls, buffer: Tensor, sizes: StepSizes) -> DeviceInputs:
        """Return views of `buffer` int32 `[sizes.num_ints or more]`."""
        parts = {name: buffer[place] for name, place in sizes.sections().items()}
        axes = parts.pop("time"), parts.pop("height"), parts.pop("width")
        return cls(positions=axes, **parts)
