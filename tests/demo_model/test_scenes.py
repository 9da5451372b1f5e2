"""Scenes: the same seed gives the same pictures, train and test share no combination, captions can be read back."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from training.captions import captions, parse
from training.evaluate import field_results
from training.kinds import BACKGROUNDS, COUNT_WORDS, KINDS, SPRITES
from training.render import Renderer
from training.scenes import Scenes, SceneSampler, pair_split, single_split
from training.sprites import load_sprites

_SCENES = Path(__file__).parents[2] / "broker_pipeline" / "demo_scenes" / "scenes.json"


def _sample(split: str, num: int, seed: int = 1) -> Scenes:
    scenes = SceneSampler(load_sprites(), split).sample(num, 256, 256, torch.Generator().manual_seed(seed))
    return scenes.take(scenes.valid)


def _combinations(scenes: Scenes) -> set[tuple]:
    found = set()
    for sprite, count, background in zip(
        scenes.sprite.tolist(), scenes.count.tolist(), scenes.background.tolist(), strict=True
    ):
        found.add(tuple(sorted(sprite)) if count[1] else (sprite[0], count[0], background))
    return found


def test_a_seed_decides_every_pixel() -> None:
    sprites = load_sprites()
    drawn = []
    for seed in (4, 4, 5):
        generator = torch.Generator().manual_seed(seed)
        scenes = SceneSampler(sprites, "train").sample(6, 256, 320, generator)
        pictures, _ = Renderer(sprites).draw(scenes, 256, 320, generator)
        drawn.append((pictures, captions(scenes)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1] == drawn[1][1]
    assert drawn[0][1] != drawn[2][1]


def test_train_and_test_scenes_share_no_combination() -> None:
    train, test = _combinations(_sample("train", 20_000)), _combinations(_sample("test", 20_000))
    assert len(train) > 5_000
    assert len(test) > 700
    assert not train & test


def test_about_a_tenth_of_the_combinations_is_held_out() -> None:
    upper = torch.ones_like(pair_split()).triu(1)
    assert 0.08 < pair_split()[upper].float().mean() < 0.12
    assert 0.08 < single_split().float().mean() < 0.12
    assert torch.equal(pair_split(), pair_split().T)


def test_nearly_every_draw_is_a_scene_and_every_kind_appears() -> None:
    scenes = SceneSampler(load_sprites(), "train").sample(5_000, 256, 256, torch.Generator().manual_seed(2))
    assert scenes.valid.float().mean() > 0.99
    assert len(scenes.sprite[scenes.valid].unique()) == len(SPRITES)
    assert len(KINDS) >= 40


def test_the_picture_decides_the_caption() -> None:
    """Things lie inside and apart, the first group is plainly larger, the relation holds for whole groups."""
    scenes = _sample("train", 3_000)
    for i in range(len(scenes)):
        group = scenes.group[i]
        half = scenes.size[i, group >= 0, None] / 2
        centre = scenes.centre[i, group >= 0]
        assert ((centre - half >= 0) & (centre + half <= 256)).all()
        for a in range(len(centre)):
            for b in range(a):
                assert (centre[a] - centre[b]).abs().max() >= half[a] + half[b]
        if scenes.count[i, 1] == 0:
            continue
        first, second = group[group >= 0] == 0, group[group >= 0] == 1
        assert half[first].min() > 1.25 * half[second].max()
        axis, ahead = divmod(int(scenes.relation[i]), 2)
        low, high = (second, first) if ahead else (first, second)
        assert (centre[low] + half[low])[:, axis].max() <= (centre[high] - half[high])[:, axis].min()


def test_captions_read_back_into_the_scene() -> None:
    scenes = _sample("train", 2_000)
    backgrounds = list(BACKGROUNDS)
    for caption, sprite, count, background in zip(
        captions(scenes), scenes.sprite.tolist(), scenes.count.tolist(), scenes.background.tolist(), strict=True
    ):
        fields = parse(caption)
        assert fields is not None
        named = sprite[: len(fields.kinds)]
        assert fields.kinds == tuple(SPRITES[i].kind.name for i in named)
        assert fields.colours == tuple(SPRITES[i].colour for i in named)
        assert fields.counts == tuple(count[: len(fields.counts)])
        assert fields.background == backgrounds[background]
        assert bool(fields.relation) == bool(count[1])


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("A red car above two cats on a pink background.", {"relation", "caption"}),
        ("A blue car below two cats on a pink background.", {"colour", "caption"}),
        ("A red car below three cats on a pink background.", {"count", "caption"}),
        ("A red car below two dogs on a grey background.", {"kind", "background", "caption"}),
        ("A red car", {"caption", "kind", "colour", "count", "relation", "background"}),
    ],
)
def test_field_results_blame_the_right_field(said: str, wrong: set[str]) -> None:
    results = field_results("A red car below two cats on a pink background.", said)
    assert {field for field, right in results.items() if not right} == wrong


def test_shipped_scenes_are_unseen_combinations() -> None:
    sprite_of = {(sprite.kind.name, sprite.colour): i for i, sprite in enumerate(SPRITES)}
    entries = json.loads(_SCENES.read_text())
    assert len(entries) == 12
    assert all(a["name"] < b["name"] for a, b in pairwise(entries))
    for entry in entries:
        fields = parse(entry["caption"])
        assert fields is not None
        sprites = [sprite_of[pair] for pair in zip(fields.kinds, fields.colours, strict=True)]
        if len(sprites) == 2:
            assert pair_split()[sprites[0], sprites[1]]
        else:
            row = single_split()[sprites[0], fields.counts[0] - 1]
            assert row[list(BACKGROUNDS).index(fields.background)]
            assert fields.counts[0] <= len(COUNT_WORDS)
