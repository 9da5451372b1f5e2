"""Captions: the sentence of a scene, its parts as token tables, and reading a sentence back into fields."""

from __future__ import annotations

import re
from dataclasses import dataclass

from training.kinds import BACKGROUNDS, COUNT_WORDS, RELATIONS, SPRITES
from training.scenes import Scenes

_BACKGROUND_NAMES = tuple(BACKGROUNDS)


def group_phrase(sprite: int, count: int) -> str:
    """Say `an orange heart`, `two cats`."""
    if count > 1:
        return f"{COUNT_WORDS[count - 1]} {SPRITES[sprite].plural}"
    name = SPRITES[sprite].name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def background_phrase(background: int) -> str:
    """Say `on a green background`."""
    return f"on a {_BACKGROUND_NAMES[background]} background"


def captions(scenes: Scenes) -> list[str]:
    """Return the one right caption of every scene."""
    sentences = []
    for sprite, count, relation, background in zip(
        scenes.sprite.tolist(), scenes.count.tolist(), scenes.relation.tolist(), scenes.background.tolist(), strict=True
    ):
        parts = [group_phrase(sprite[0], count[0])]
        if count[1]:
            parts += [RELATIONS[relation], group_phrase(sprite[1], count[1])]
        parts.append(background_phrase(background))
        sentence = " ".join(parts)
        sentences.append(sentence[0].upper() + sentence[1:] + ".")
    return sentences


@dataclass(frozen=True, slots=True)
class Fields:
    """What a caption says; tuples follow the caption's order of groups."""

    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    counts: tuple[int, ...]
    relation: str
    background: str


_SENTENCE = re.compile(rf"(.+?)(?: ({'|'.join(RELATIONS)}) (.+?))? on an? (\w+) background\.")
_GROUPS = {
    group_phrase(index, count): (sprite.kind.name, sprite.colour, count)
    for index, sprite in enumerate(SPRITES)
    for count in (1, 2, 3)
}


def parse(caption: str) -> Fields | None:
    """Return the fields of a caption, or None for a sentence outside the grammar."""
    match = _SENTENCE.fullmatch(caption)
    if match is None or match[4] not in BACKGROUNDS:
        return None
    phrases = [match[1][:1].lower() + match[1][1:]] + ([match[3]] if match[3] else [])
    if any(phrase not in _GROUPS for phrase in phrases):
        return None
    kinds, colours, counts = zip(*(_GROUPS[phrase] for phrase in phrases), strict=True)
    return Fields(kinds, colours, counts, match[2] or "", match[4])
