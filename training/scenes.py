"""Random scenes as tensors: what stands where, on which background. The same code runs on CPU and GPU.

A scene holds one or two groups; a group is one to three equal things. The caption names the group of the
larger things first, so it is a function of what can be seen:

    one group    1, 2 or 3 things anywhere                    "Two red apples on a white background."
    two groups   1+1, 1+2 or 2+1 things, larger ones first    "A cat above two green books on a grey background."

Test scenes are made of combinations that no training scene shows. For two groups the combination is the unordered
pair of sprites (a sprite is a kind in a colour), whatever their counts, relation and background; for one
group it is sprite, count and background. A combination belongs to the test split when the first byte of the
SHA-256 of its name is below 26 (about a tenth of all).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch

from training.kinds import BACKGROUNDS, COUNT_WORDS, KINDS, RELATIONS, SPRITES
from training.sprites import contrast_table

Split = Literal["train", "test"]

MAX_THINGS = 3
_COUNTS = ((1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 1))
_COUNT_WEIGHTS = (0.12, 0.10, 0.10, 0.34, 0.17, 0.17)
_CONTENT_TRIES = 12
_LAYOUT_TRIES = 32
_SAME_KIND_SHARE = 0.08


@dataclass(frozen=True, slots=True)
class Scenes:
    """A batch of scenes; B scenes, at most MAX_THINGS things each.

    sprite, count: int64 [B, 2], the groups in the caption's order, count 0 where there is no second group.
    relation, background: int64 [B], into RELATIONS (of the first group to the second) and BACKGROUNDS.
    centre: float32 [B, 3, 2] in pixels (x, y); size: float32 [B, 3], the side of the thing's square in pixels.
    group: int64 [B, 3], the group of each thing, -1 where there is none. valid: bool [B].
    """

    sprite: torch.Tensor
    count: torch.Tensor
    relation: torch.Tensor
    background: torch.Tensor
    centre: torch.Tensor
    size: torch.Tensor
    group: torch.Tensor
    valid: torch.Tensor

    def __len__(self) -> int:
        return len(self.valid)

    def take(self, index: torch.Tensor) -> Self:
        """Take the scenes at an index or under a mask."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))


def _in_test(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < 26


def pair_split() -> torch.Tensor:
    """Return bool [num_sprites, num_sprites], symmetric: the pair belongs to the test split."""
    names = [sprite.name for sprite in SPRITES]
    table = torch.zeros(len(names), len(names), dtype=torch.bool)
    for i, first in enumerate(names):
        for j in range(i):
            table[i, j] = table[j, i] = _in_test(" + ".join(sorted((first, names[j]))))
    return table


def single_split() -> torch.Tensor:
    """Return bool [num_sprites, 3, num_backgrounds]: sprite, count and background belong to the test split."""
    return torch.tensor(
        [
            [
                [_in_test(f"{count} {sprite.name} on {background}") for background in BACKGROUNDS]
                for count in COUNT_WORDS
            ]
            for sprite in SPRITES
        ]
    )


class SceneSampler:
    """Draws scenes of one split from a torch generator, on the generator's device."""

    def __init__(self, sprites: torch.Tensor, split: Split, device: torch.device | str = "cpu") -> None:
        """Draw scenes of a split on `device` with the sprites of `load_sprites`."""
        self.device = torch.device(device)
        wanted = split == "test"
        self._pair_allowed = (pair_split() == wanted).to(device)
        self._pair_allowed.fill_diagonal_(False)
        self._single_allowed = (single_split() == wanted).to(device)
        self._visible = contrast_table(sprites).to(device)
        numbers = [len(kind.glyphs) for kind in KINDS]
        self._num_colours = torch.tensor(numbers, device=device)
        self._first_sprite = torch.tensor([sum(numbers[:i]) for i in range(len(numbers))], device=device)
        self._kind_of = torch.tensor([KINDS.index(sprite.kind) for sprite in SPRITES], device=device)
        self._counts = torch.tensor(_COUNTS, device=device)
        self._weights = torch.tensor(_COUNT_WEIGHTS, device=device)

    def sample(self, num_scenes: int, height: int, width: int, generator: torch.Generator) -> Scenes:
        """Draw `num_scenes` scenes for pictures of `height` x `width` pixels."""
        counts = self._counts[torch.multinomial(self._weights, num_scenes, replacement=True, generator=generator)]
        sprite, relation, background, content_ok = self._content(counts, generator)
        centre, size, group, layout_ok = self._layout(counts, relation, height, width, generator)
        return Scenes(sprite, counts, relation, background, centre, size, group, content_ok & layout_ok)

    def _uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=self.device)

    def _content(self, counts: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw sprites, relation and background: the first of several draws that the split and the contrast allow."""
        shape = (len(counts), _CONTENT_TRIES)
        kind = (self._uniform((*shape, 2), generator) * len(KINDS)).long()
        same = self._uniform(shape, generator) < _SAME_KIND_SHARE
        kind[..., 1] = torch.where(same, kind[..., 0], kind[..., 1])
        colour = (self._uniform((*shape, 2), generator) * self._num_colours[kind]).long()
        sprite = self._first_sprite[kind] + colour
        background = (self._uniform(shape, generator) * len(BACKGROUNDS)).long()
        relation = (self._uniform((len(counts),), generator) * len(RELATIONS)).long()
        two = counts[:, 1:] > 0
        first, second = sprite.unbind(-1)
        single_ok = self._single_allowed[first, (counts[:, :1] - 1), background]
        allowed = torch.where(two, self._pair_allowed[first, second], single_ok)
        seen = self._visible[first, background] & (self._visible[second, background] | ~two)
        chosen = (allowed & seen).int().argmax(1, keepdim=True)
        pick = lambda table: table.gather(1, chosen)[:, 0]  # noqa: E731
        sprites = torch.stack([pick(first), pick(second)], dim=1)
        return sprites, relation, pick(background), pick((allowed & seen).int()).bool()

    def _sizes(self, counts: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw thing sizes [B, 3] and groups [B, 3]; in two groups the first is at least 1.3 times the second."""
        first, second = counts[:, :1], counts[:, 1:]
        index = torch.arange(MAX_THINGS, device=self.device)[None]
        group = torch.where(index < first, 0, torch.where(index < first + second, 1, -1))
        u = self._uniform((len(counts), 2), generator)
        largest = torch.where(first == 1, 128.0, torch.where(first == 2, 104.0, 84.0))
        alone = 52 + u[:, :1] * (largest - 52)
        large = torch.where(first == 1, 66 + u[:, :1] * 54, 66 + u[:, :1] * 26)
        small = 44 + u[:, 1:] * (large / 1.45 - 44)
        size = torch.where(second == 0, alone, torch.where(group == 0, large, small))
        return size * (0.95 + 0.1 * self._uniform(tuple(group.shape), generator)), group

    def _layout(
        self, counts: torch.Tensor, relation: torch.Tensor, height: int, width: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Draw centres: the first of several draws in which nothing overlaps and the relation is plain to see.

        For "left of" the picture is cut by a random vertical line; the first group stands left of it, the second
        right. The other relations are the same with axis and side exchanged.
        """
        size, group = self._sizes(counts, generator)
        extent = torch.tensor([width, height], device=self.device, dtype=torch.float32)
        two = (counts[:, 1] > 0)[:, None]
        axis = (relation >= 2).long()  # 0: x, 1: y
        first_is_low = (relation % 2 == 0)[:, None]  # "left of" and "above"
        side = torch.where(group == 1, ~first_is_low, first_is_low)  # True: below the cut
        room = torch.stack([(size * (group == g)).amax(1) for g in (0, 1)], dim=1) + 4
        room_low = torch.where(first_is_low[:, 0], room[:, 0], room[:, 1])
        free = extent[axis] - room.sum(1)
        cut = room_low[:, None] + free[:, None] * self._uniform((len(counts), _LAYOUT_TRIES), generator)
        low = (
            size[:, None, :, None] / 2 + 2 + torch.zeros(len(counts), _LAYOUT_TRIES, MAX_THINGS, 2, device=self.device)
        )
        high = extent - low
        along = torch.nn.functional.one_hot(axis, 2).bool()[:, None, None] & two[:, None, :, None]
        half = size[:, None, :, None] / 2 + 2
        low = torch.where(along & ~side[:, None, :, None], cut[..., None, None] + half, low)
        high = torch.where(along & side[:, None, :, None], cut[..., None, None] - half, high)
        centre = low + (high - low).clamp(min=0) * self._uniform(tuple(low.shape), generator)
        fine = (low <= high + 1e-3).flatten(2).all(2) & self._apart(centre, size, group)
        fine &= self._plain_relation(centre, group, axis) | ~two
        chosen = fine.int().argmax(1)
        return centre[torch.arange(len(counts), device=self.device), chosen], size, group, fine.any(1)

    @staticmethod
    def _apart(centre: torch.Tensor, size: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Return bool [B, tries]: the squares of no two things overlap."""
        fine = torch.ones(centre.shape[:2], dtype=torch.bool, device=centre.device)
        for i in range(MAX_THINGS):
            for j in range(i):
                reach = ((size[:, i] + size[:, j]) / 2 + 1)[:, None]
                clear = (centre[:, :, i] - centre[:, :, j]).abs().amax(-1) >= reach
                absent = ((group[:, i] < 0) | (group[:, j] < 0))[:, None]
                fine &= clear | absent
        return fine

    @staticmethod
    def _plain_relation(centre: torch.Tensor, group: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
        """Return bool [B, tries]: the groups' centres lie apart mostly along the relation's axis."""
        means = []
        for g in (0, 1):
            weight = (group == g).float()[:, None, :, None]
            means.append((centre * weight).sum(2) / weight.sum(2).clamp(min=1))
        offset = (means[0] - means[1]).abs()
        main = torch.where(axis[:, None] == 0, offset[..., 0], offset[..., 1])
        other = torch.where(axis[:, None] == 0, offset[..., 1], offset[..., 0])
        return other <= 0.65 * main
