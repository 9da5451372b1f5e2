"""Where a model's parts run: copies, their stages, and vision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import BlockRange

VisionPlace = Literal["shared", "every", "beside", "separate"]
"""In the process of each copy's first stage, in that of every stage, or in processes that only encode: one on the
device of each stage, or on further devices."""

Chain = tuple[BlockRange, ...]
"""The stages of one copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Stages take the devices in order, copy by copy; separate vision workers take those that follow.

    devices   0         1         2         3             0         1         2
    stages    0:18      18:36     0:18      18:36         0:18      18:36
    every     vision    vision    vision    vision        in the stages' processes; `shared`: in each first one's
    beside    vision-0  vision-1  vision-2  vision-3      `separate`:         vision-0
    """

    chains: tuple[Chain, ...]
    vision: VisionPlace
    num_vision_workers: int = 0
    """Processes that only encode, with `separate`."""

    @property
    def encoders(self) -> tuple[int, ...]:
        """Where processes run that only encode, by the order in which workers take devices."""
        if self.vision == "beside":
            return tuple(range(len(self.stages)))
        return tuple(range(len(self.stages), len(self.stages) + self.num_vision_workers))

    @property
    def stages(self) -> tuple[BlockRange, ...]:
        """The stages of all copies, one after the other."""
        return tuple(blocks for chain in self.chains for blocks in chain)

    @property
    def vision_stages(self) -> tuple[int, ...]:
        """Indexes into `stages` of those whose process encodes pictures as well."""
        if self.vision in {"beside", "separate"}:
            return ()
        starts = accumulate((len(chain) for chain in self.chains[:-1]), initial=0)
        return tuple(range(len(self.stages))) if self.vision == "every" else tuple(starts)

    def shares(self, num_conductors: int) -> tuple[str, ...]:
        """Return the share of each of `stages`, so that each conductor gets about as many copies; one has no name."""
        num_copies = len(self.chains)
        num_shares = min(num_conductors, num_copies)
        names = [str(index * num_shares // num_copies) if num_shares > 1 else "" for index in range(num_copies)]
        return tuple(name for name, chain in zip(names, self.chains, strict=True) for _ in chain)

    def __str__(self) -> str:
        counts = Counter(tuple(f"{blocks.start}:{blocks.stop}" for blocks in chain) for chain in self.chains)
        return " and ".join(f"{_copies(count)}{_stages(chain)}" for chain, count in counts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutRequest:
    """What a person asks for; None leaves it to the planner."""

    num_copies: int | None = None
    num_stages: int | None = None
    """Of each copy."""
    chain: Chain | None = None
    """The stages themselves, in place of the planner's cut."""
    vision: VisionPlace | None = None
    num_vision_workers: int | None = None
    """Processes that only encode, with `separate`."""

    def __str__(self) -> str:
        parts = {"copies": self.num_copies, "stages": self.num_stages}
        return ",".join(f"{name}={value}" for name, value in parts.items() if value is not None) or "auto"


def parse_layout(text: str) -> LayoutRequest:
    """Read `auto`, `copies=4`, `stages=4` or `copies=2,stages=2`; a part that is left out of the last is 1.

    Raises `ConfigurationError`.
    """
    if text.strip() == "auto":
        return LayoutRequest()
    counts: dict[str, int] = {}
    for word in text.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        if (
            name not in {"copies", "stages"}
            or name in counts
            or not (value.isascii() and value.isdigit())
            or not int(value)
        ):
            raise ConfigurationError(
                f"--layout {text!r}: write auto, copies=4, stages=4 or copies=2,stages=2, numbers from 1",
                field="layout",
            )
        counts[name] = int(value)
    return LayoutRequest(num_copies=counts.get("copies", 1), num_stages=counts.get("stages", 1))


def chain_of(counts: Sequence[int]) -> Chain:
    """Return the stages that have so many layers, one after the other."""
    return tuple(BlockRange(start=start, stop=stop) for start, stop in pairwise(accumulate(counts, initial=0)))


def even_chain(num_layers: int, num_stages: int) -> Chain:
    """Return stages of as equal numbers of layers as can be."""
    bounds = [num_layers * index // num_stages for index in range(num_stages + 1)]
    return chain_of([stop - start for start, stop in pairwise(bounds)])


def _copies(count: int) -> str:
    return "1 copy, " if count == 1 else f"{count} copies, each "


def _stages(chain: Sequence[str]) -> str:
    return "whole" if len(chain) == 1 else f"in {len(chain)} stages, blocks {' '.join(chain)}"
