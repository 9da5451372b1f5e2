"""Bytes of a picture to RGB pixels.

A few kilobytes can decode to gigabytes, so the picture's header is held to the rule before anything is decoded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from broker_pipeline.pictures.colour import WHITE, Colour
from broker_pipeline.pictures.header import check_picture
from broker_pipeline.pictures.rule import PictureRule
from stages.pictures.colours import shown
from stages.pictures.opening import open_picture

DEFAULT_RULE = PictureRule()


def decode_image(content: bytes, rule: PictureRule = DEFAULT_RULE, background: Colour = WHITE) -> Tensor:
    """Return what a person sees of the picture, uint8 `[3, height, width]`; `background` is behind what is transparent.

    Raises:
        MediaTooLargeError: more bytes than are accepted.
        NotAnImageError: not a picture, or in a format that is not accepted.
        UnsupportedImageError: a kind of picture that is not decoded here.
        ImageTooLargeError: the header announces more pixels than are accepted.
        ImageShapeError: one side is too many times the other.
        TruncatedImageError: the file ends too early or is corrupt.
    """
    header = check_picture(content, rule)
    image = shown(open_picture(content, header.format), background)
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)
