"""The sprite atlas: emoji drawn from the Noto Color Emoji font, some recoloured, kept as one PNG.

    python -m training.sprites /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

draws the atlas anew (Debian package `fonts-noto-color-emoji` 2.042). Training reads only the PNG.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from training.kinds import BACKGROUNDS, PALETTE, SPRITES, Sprite

ATLAS_PATH = Path(__file__).with_name("sprites.png")
CELL = 96
COLUMNS = 12
_STRIKE = 109  # the one bitmap size in the font


def _drawn(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image:
    """Draw one emoji, cropped to its ink and fitted into a CELL x CELL square."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), glyph, font=font, embedded_color=True)
    ink = canvas.crop(canvas.getbbox())
    side = max(ink.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square.resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS)


def _recoloured(picture: Image.Image, colour: str) -> Image.Image:
    """Return the picture with its dominating hue replaced by a palette colour, shading kept."""
    rgba = np.asarray(picture).astype(np.float32)
    hsv = np.asarray(picture.convert("RGB").convert("HSV")).astype(np.float32)
    hue, saturation, value = hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255
    inked = (rgba[..., 3] > 128) & (saturation > 0.12)
    histogram, _ = np.histogram(hue[inked], bins=36, range=(0, 360), weights=saturation[inked])
    dominating = 10 * int(histogram.argmax()) + 5
    distance = np.abs((hue - dominating + 180) % 360 - 180)
    chosen = inked & (distance < 36)
    strength = np.clip(saturation / np.median(saturation[chosen]), 0, 1)[..., None]
    light = (value / np.median(value[chosen]))[..., None]
    target = np.array(PALETTE[colour], dtype=np.float32)
    shaded = target * np.minimum(light, 1) + (255 - target) * np.clip(light - 1, 0, 1) * 0.6
    tinted = shaded * strength + 255 * np.minimum(light, 1) * (1 - strength)
    rgba[..., :3] = np.where(chosen[..., None], tinted, rgba[..., :3])
    return Image.fromarray(np.clip(rgba + 0.5, 0, 255).astype(np.uint8), "RGBA")


def _sprite_picture(font: ImageFont.FreeTypeFont, sprite: Sprite) -> Image.Image:
    picture = _drawn(font, sprite.glyph)
    return _recoloured(picture, sprite.colour) if sprite.kind.recoloured else picture


def build_atlas(font_path: Path) -> Image.Image:
    """Draw all sprites in table order, row by row, COLUMNS to a row."""
    font = ImageFont.truetype(str(font_path), _STRIKE)
    rows = -(-len(SPRITES) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for index, sprite in enumerate(SPRITES):
        row, column = divmod(index, COLUMNS)
        atlas.paste(_sprite_picture(font, sprite), (column * CELL + 1, row * CELL + 1))
    return atlas


def load_sprites() -> torch.Tensor:
    """Return the sprites as float32 [num_sprites, 4, CELL, CELL]: premultiplied RGB in 0..255, then alpha in 0..1."""
    rgba = np.asarray(Image.open(ATLAS_PATH).convert("RGBA")).astype(np.float32)
    rows = rgba.shape[0] // CELL
    cells = rgba.reshape(rows, CELL, COLUMNS, CELL, 4).transpose(0, 2, 4, 1, 3).reshape(-1, 4, CELL, CELL)
    sprites = torch.from_numpy(cells[: len(SPRITES)].copy())
    sprites[:, 3] /= 255
    sprites[:, :3] *= sprites[:, 3:]
    return sprites


def contrast_table(sprites: torch.Tensor, *, distance: float = 70.0, share: float = 0.5) -> torch.Tensor:
    """Return bool [num_sprites, num_backgrounds]: at least `share` of the ink differs from the background.

    Pixels differ when their Euclidean RGB distance is at least `distance`.
    """
    alpha = sprites[:, 3].flatten(1)
    colours = sprites[:, :3].flatten(2) / alpha.clamp(min=1e-3)[:, None]
    inked = alpha > 0.5
    columns = []
    for rgb in BACKGROUNDS.values():
        base = torch.tensor(rgb, dtype=torch.float32)[None, :, None]
        differs = ((colours - base).square().sum(1).sqrt() >= distance) & inked
        columns.append(differs.sum(1) / inked.sum(1) >= share)
    return torch.stack(columns, dim=1)


if __name__ == "__main__":
    build_atlas(Path(sys.argv[1])).save(ATLAS_PATH, optimize=True)
    print(f"{ATLAS_PATH.name}: {len(SPRITES)} sprites, {ATLAS_PATH.stat().st_size} bytes")
