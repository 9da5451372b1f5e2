"""Scenes to pictures: background, then the things, as uint8 values. The same code runs on CPU and GPU."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from training.kinds import BACKGROUNDS
from training.scenes import MAX_THINGS, Scenes

STYLES = ("plain", "grain", "blotches", "gradient", "stripes", "specks")


class Renderer:
    """Draws batches of scenes with sprites held on one device."""

    def __init__(self, sprites: torch.Tensor, device: torch.device | str = "cpu") -> None:
        """Draw on `device` with the sprites of `load_sprites`."""
        self.device = torch.device(device)
        self._sprites = sprites.to(device)
        self._backgrounds = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32, device=device)

    def draw(
        self, scenes: Scenes, height: int, width: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw pictures (whole values 0..255) and the alpha of each thing, both float32 [B, 3, height, width]."""
        picture = self._background(scenes.background, height, width, generator)
        angle = (self._uniform((len(scenes), MAX_THINGS), generator) * 2 - 1) * math.radians(12)
        mirror = self._uniform((len(scenes), MAX_THINGS), generator) < 0.5
        alphas = []
        for thing in range(MAX_THINGS):
            layer = self._placed(scenes, thing, angle[:, thing], mirror[:, thing], height, width)
            alpha = layer[:, 3:]
            picture = layer[:, :3] + picture * (1 - alpha)
            alphas.append(alpha[:, 0])
        return (picture + 0.5).floor().clamp(0, 255), torch.stack(alphas, dim=1)

    def _uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=self.device)

    def _placed(
        self, scenes: Scenes, thing: int, angle: torch.Tensor, mirror: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """Place one thing of every scene on an empty canvas, premultiplied RGBA [B, 4, height, width]."""
        group = scenes.group[:, thing]
        sprite = scenes.sprite.gather(1, group.clamp(min=0)[:, None])[:, 0]
        ink = self._sprites[sprite] * (group >= 0)[:, None, None, None]
        scale = scenes.size[:, thing, None, None]
        x = torch.arange(width, device=self.device)[None, None, :] + 0.5 - scenes.centre[:, thing, 0, None, None]
        y = torch.arange(height, device=self.device)[None, :, None] + 0.5 - scenes.centre[:, thing, 1, None, None]
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        u = (cosine * x + sine * y) * (2 / scale)
        v = (cosine * y - sine * x) * (2 / scale)
        u = torch.where(mirror[:, None, None], -u, u)
        grid = torch.stack([u, v], dim=-1)
        return functional.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _background(
        self, background: torch.Tensor, height: int, width: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Paint a named colour, slightly varied, plain or under one kind of noise."""
        num = len(background)
        base = self._backgrounds[background] + (self._uniform((num, 3), generator) - 0.5) * 18
        style = (self._uniform((num,), generator) * len(STYLES)).long()
        strength = (0.35 + 0.65 * self._uniform((num,), generator))[:, None, None, None]
        noises = (
            self._grain(num, height, width, generator),
            self._blotches(num, height, width, generator),
            self._gradient(num, height, width, generator),
            self._stripes(num, height, width, generator),
            self._specks(num, height, width, generator),
        )
        total = torch.zeros(num, 3, height, width, device=self.device)
        for number, noise in enumerate(noises, start=1):
            total += noise * (style == number)[:, None, None, None]
        return (base[:, :, None, None] + total * strength).clamp(0, 255)

    def _grain(self, num: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn((num, 3, height, width), generator=generator, device=self.device) * 16

    def _blotches(self, num: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        coarse = self._uniform((num, 1, height // 20, width // 20), generator) - 0.5
        return functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False) * 70

    def _direction(self, num: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        """Return coordinates [B, 1, height, width] along a random direction, -1..1 over the larger side."""
        angle = self._uniform((num, 1, 1, 1), generator) * (2 * math.pi)
        side = max(height, width) / 2
        x = (torch.arange(width, device=self.device) - width / 2)[None, None, None, :] / side
        y = (torch.arange(height, device=self.device) - height / 2)[None, None, :, None] / side
        return angle.cos() * x + angle.sin() * y

    def _gradient(self, num: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        return self._direction(num, height, width, generator) * 32

    def _stripes(self, num: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        waves = 10 + 30 * self._uniform((num, 1, 1, 1), generator)
        return torch.sin(self._direction(num, height, width, generator) * waves) * 18

    def _specks(self, num: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        drawn = self._uniform((num, 1, height // 4, width // 4), generator)
        specks = (drawn < 0.02).float() - (drawn > 0.98).float()
        return functional.interpolate(specks, (height, width), mode="nearest") * 60
