"""The bytes of pictures and videos to frames of the size that the model wants, by the rules of one vision worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import ImagePart, PixelBounds, VideoFilePart, VisualPart
from broker_pipeline.pictures.colour import WHITE, Colour
from broker_pipeline.pictures.rule import PictureRule, check_bounds
from broker_pipeline.pictures.video import check_video
from stages.pictures.video_frames import DecodingLimits, decoded_frames, sampled_indices
from stages.prompt.images import decode_image
from stages.prompt.preprocess import PixelBudget
from stages.prompt.visual_frames import VisualFrames, image_frames, video_frames
from stages.qwen3_vl.vision_config import VisionConfig

Decoded = tuple[VisualFrames, tuple[float, ...]]
"""Frames, and of a video the second at which each is shown."""


@dataclass(frozen=True, slots=True)
class PixelRules:
    """How this model wants its pictures. `video` is None where the artifact says nothing about videos."""

    vision: VisionConfig
    image: PixelBudget
    video: PixelBudget | None
    pictures: PictureRule
    background: Colour = WHITE
    max_video_decode_s: float = 60.0
    """For one video's file."""


def decode(part: VisualPart, contents: list[bytes], rules: PixelRules) -> Decoded:
    """Decode a picture's bytes, those of each frame of a video, or a video's file, and resize them.

    Raises:
        MediaError: they cannot be used; says why.
        InvalidRequestError: the model takes no videos, or bounds on pixels are beyond what this worker has memory for.
    """
    if isinstance(part, ImagePart):
        pixels = decode_image(contents[0], rules.pictures, rules.background)
        return image_frames(pixels, rules.vision, _budget(rules.image, part.bounds)), ()
    if rules.video is None:
        raise InvalidRequestError("this model's artifact has no video_preprocessor_config.json", field="messages")
    budget = _budget(rules.video, part.bounds)
    if isinstance(part, VideoFilePart):
        return _decode_file(part, contents[0], budget, rules)
    rules.pictures.check_frames(len(contents))
    frames = (decode_image(content, rules.pictures, rules.background) for content in contents)
    return video_frames(frames, len(contents), rules.vision, budget), part.frame_times


def _decode_file(part: VideoFilePart, content: bytes, budget: PixelBudget, rules: PixelRules) -> Decoded:
    header = check_video(content, rules.pictures)
    indices = sampled_indices(header, part.fps, min(part.max_frames, rules.pictures.max_frames))
    times: list[float] = []

    def frames() -> Iterator[Tensor]:
        limits = DecodingLimits(rules.pictures.max_pixels, rules.max_video_decode_s)
        for second, pixels in decoded_frames(content, indices, limits, time.monotonic):
            times.append(second)
            yield torch.from_numpy(pixels).permute(2, 0, 1)

    return video_frames(frames(), len(indices), rules.vision, budget), tuple(times)


def _budget(own: PixelBudget, bounds: PixelBounds) -> PixelBudget:
    check_bounds(bounds.min_pixels, bounds.max_pixels, own.max_pixels, "messages")
    return own.with_bounds(bounds.min_pixels, bounds.max_pixels)
