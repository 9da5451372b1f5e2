"""Colours as people write them: `white`, `#fff`, `rgb(255, 255, 255)`."""

from __future__ import annotations

from typing import Annotated

import click
from msgspec import Meta
from PIL import ImageColor

Level = Annotated[int, Meta(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
"""Red, green and blue."""
WHITE: Colour = (255, 255, 255)


def read_colour(_context: click.Context | None, _option: click.Parameter | None, text: str) -> Colour:
    """Return the colour that an option names; raises `click.BadParameter` for what is none. A callback of click's."""
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError as error:
        reason = "is no colour; write one like white, #ffffff or rgb(255, 255, 255)"
        raise click.BadParameter(f"{text!r} {reason}") from error
    if alpha not in ([], [255]):
        raise click.BadParameter(f"{text!r} is transparent itself")
    return red, green, blue
