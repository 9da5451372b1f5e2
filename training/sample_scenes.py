"""Make the sample scenes that ship with the package: a dozen of the test split, as PNG files and scenes.json.

python -m training.sample_scenes broker_pipeline/demo_scenes
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from training.captions import captions
from training.kinds import BACKGROUNDS, RELATIONS, SPRITES
from training.render import Renderer
from training.scenes import SceneSampler
from training.sprites import load_sprites

SEED = 7
SIZES = ((256, 256), (256, 320), (320, 256))
LEFT, RIGHT, ABOVE, BELOW = range(len(RELATIONS))
PLAN = (
    ((1, 0), None),
    ((1, 1), RIGHT),
    ((2, 1), LEFT),
    ((1, 2), ABOVE),
    ((2, 0), None),
    ((1, 1), LEFT),
    ((1, 2), BELOW),
    ((3, 0), None),
    ((2, 1), RIGHT),
    ((1, 1), ABOVE),
    ((1, 0), None),
    ((1, 2), LEFT),
)
"""Counts of the two groups and their relation, scene by scene."""


def sample_scenes() -> list[tuple[Image.Image, str]]:
    """Put scenes in order: every second one shows a coloured thing, no kind comes twice, backgrounds keep changing."""
    sprites = load_sprites()
    sampler, renderer = SceneSampler(sprites, "test"), Renderer(sprites)
    generator = torch.Generator().manual_seed(SEED)
    chosen, used, backgrounds = [], set(), []
    for number, (counts, relation) in enumerate(PLAN):
        height, width = SIZES[number % len(SIZES)]
        pool = sampler.sample(2000, height, width, generator)
        for index in range(len(pool)):
            groups = pool.sprite[index, : 1 + (counts[1] > 0)].tolist()
            names = {SPRITES[i].kind.name for i in groups}
            coloured = any(SPRITES[i].colour for i in groups)
            background = int(pool.background[index])
            fits = bool(pool.valid[index]) and tuple(pool.count[index].tolist()) == counts
            fits &= relation is None or int(pool.relation[index]) == relation
            if fits and not names & used and coloured == (number % 2 == 1) and background not in backgrounds:
                break
        used |= names
        backgrounds = ([*backgrounds, background])[-(len(BACKGROUNDS) - 1) :]
        scene = pool.take(torch.tensor([index]))
        pictures, _ = renderer.draw(scene, height, width, generator)
        chosen.append((Image.fromarray(pictures[0].byte().permute(1, 2, 0).numpy()), captions(scene)[0]))
    return chosen


def main(directory: Path) -> None:
    """Write scene-01.png ... and scenes.json."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (picture, caption) in enumerate(sample_scenes(), start=1):
        name = f"scene-{number:02d}.png"
        picture.save(directory / name, optimize=True)
        entries.append({"name": name, "caption": caption})
    (directory / "scenes.json").write_text(json.dumps(entries, indent=2) + "\n")
    print(f"{len(entries)} scenes, {sum(path.stat().st_size for path in directory.iterdir())} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
