"""Whatever a picture's file holds to what a person sees of it: upright, 8 bits, sRGB, on a background."""

from __future__ import annotations

import numpy as np
from PIL import Image

from broker_pipeline.errors import TruncatedImageError
from broker_pipeline.pictures.colour import WHITE, Colour
from stages.pictures.levels import Levels, Samples, from_floats, from_integers, from_long_integers
from stages.pictures.opening import OpenedPicture
from stages.pictures.profiles import lab_to_srgb, to_srgb

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PLAIN = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
_BLENDED_AT_ONCE = 2**20
"""Pixels; bounds the copies that blending takes."""


def shown(picture: OpenedPicture, background: Colour = WHITE) -> Image.Image:
    """Return the picture in RGB, as it is seen on `background`."""
    image = _plain(picture)
    alpha = image.getchannel("A") if image.mode in {"LA", "RGBA"} else None
    if alpha is not None:
        image = image.convert(image.mode.removesuffix("A"))
    colours = lab_to_srgb(image) if image.mode == "LAB" else to_srgb(image, picture.icc_profile)
    if alpha is not None:
        _blend(colours, alpha, background)
    turn = _TURNS.get(picture.orientation)
    return colours if turn is None else colours.transpose(turn)


def _plain(picture: OpenedPicture) -> Image.Image:
    """Return the picture in one of the modes L, LA, RGB, RGBA, CMYK and LAB; `TruncatedImageError` for no palette."""
    image = picture.image
    if image.mode in {"P", "PA"} and not image.getpalette():
        raise TruncatedImageError("the image is corrupt: it has indices and no palette")
    if image.mode == "P" and isinstance(transparency := image.info.get("transparency"), bytes):
        image.info["transparency"] = transparency[
            : len(image.getpalette() or ()) // 3
        ]  # viewers pass over what is more
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _scaled(picture)
    if image.has_transparency_data and image.mode not in {"LA", "RGBA", "PA", "La", "RGBa"}:
        return image.convert("RGBA")
    if image.mode == "P":
        return image.convert("RGB")
    return image.convert(_PLAIN[image.mode]) if image.mode in _PLAIN else image


def _scaled(picture: OpenedPicture) -> Image.Image:
    """Scale samples of more than 8 bits, so that black and white stay black and white."""
    samples = np.asarray(picture.image)
    levels = _levels(samples, picture.white)
    grey = Image.fromarray(255 - levels if picture.is_negative else levels)
    key = picture.image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(samples == key, np.uint8(0), np.uint8(255))))
    return grey


def _levels(samples: Samples, white: float) -> Levels:
    if samples.dtype.kind == "f":
        return from_floats(samples)
    return from_long_integers(samples) if samples.dtype.itemsize == 4 else from_integers(samples, white)


def _blend(colours: Image.Image, alpha: Image.Image, background: Colour) -> None:
    """Put `background` behind what is transparent, a band of rows at a time."""
    if alpha.getextrema() == (255, 255):
        return
    step = max(1, _BLENDED_AT_ONCE // colours.width)
    for top in range(0, colours.height, step):
        box = (0, top, colours.width, min(top + step, colours.height))
        front = colours.crop(box)
        front.putalpha(alpha.crop(box))
        behind = Image.new("RGBA", front.size, (*background, 255))
        colours.paste(Image.alpha_composite(behind, front).convert("RGB"), box)
