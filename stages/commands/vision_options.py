"""Command line options of vision workers, also of one that shares a process with a stage. No torch."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from broker_pipeline.config import add_options, option
from broker_pipeline.pictures.colour import read_colour
from broker_pipeline.pictures.rule import PictureRule
from stages.worker.settings import ComputeSettings, VisionSettings

_PICTURES = PictureRule()
F = TypeVar("F", bound=Callable[..., Any])

_VISION_OPTIONS = (
    option(
        "--max-requests", default=256, type=click.IntRange(min=1), help="Sessions that are prepared at the same time."
    ),
    option(
        "--max-pictures",
        default=16,
        type=click.IntRange(min=1),
        help="Pictures that are fetched and decoded at the same time; bounds memory.",
    ),
    option(
        "--max-batch-patches",
        default=12_288,
        type=click.IntRange(min=4),
        help="Patches of 16 x 16 pixels that the vision tower encodes in one go.",
    ),
    option(
        "--fp8-tower/--no-fp8-tower",
        default=False,
        help="Quantise the blocks of the vision tower to FP8 when they are loaded: half of their memory on GPUs from "
        "Ada on, in bfloat16; elsewhere values are rounded and nothing is saved. All vision workers of a pipeline need "
        "the same, or what they make of a picture differs.",
    ),
    option(
        "--preprocess-threads",
        default=None,
        type=click.IntRange(min=1),
        help="Threads that decode and resize; pictures below a megapixel take three of them at most.  "
        "[default: half of the cores, from 2 to 8]",
    ),
    option(
        "--cache-bytes",
        default=None,
        type=click.IntRange(min=0),
        help="Bytes of encoded pictures kept in case they come again.  [default: 1 GiB, at most 1.5 % of a GPU]",
    ),
    option(
        "--max-image-bytes",
        default=_PICTURES.max_bytes,
        type=click.IntRange(min=1),
        help="Largest image file; gateways refuse larger ones.",
    ),
    option(
        "--max-image-pixels",
        default=_PICTURES.max_pixels,
        type=click.IntRange(min=1),
        help="Pixels of the largest image decoded; gateways refuse larger ones.",
    ),
    option(
        "--max-video-bytes",
        default=_PICTURES.max_video_bytes,
        type=click.IntRange(min=1),
        help="Largest video file; gateways refuse larger ones.",
    ),
    option(
        "--max-video-s",
        default=_PICTURES.max_video_s,
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds of the longest video file; gateways refuse longer ones.",
    ),
    option(
        "--max-video-decode-s",
        default=60.0,
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds that decoding a video file may take.",
    ),
    option(
        "--min-pixels",
        default=None,
        type=click.IntRange(min=1),
        help="Pixels that a picture is resized to at least; jobs may say so themselves.  [default: the model's]",
    ),
    option(
        "--max-pixels",
        default=None,
        type=click.IntRange(min=1),
        help="Pixels that a picture is resized to at most; jobs may ask for less.  [default: the model's]",
    ),
    option(
        "--background",
        default="white",
        callback=read_colour,
        help="Colour behind the transparent parts of pictures, such as white or #808080.",
    ),
)
VISION_OPTION_NAMES = tuple(
    name for name in VisionSettings.__struct_fields__ if name not in {"name", *ComputeSettings.__struct_fields__}
)


def vision_options(function: F) -> F:
    """Add the options of `VisionSettings`, less its name and those of `ComputeSettings`, to a command."""
    return add_options(function, _VISION_OPTIONS)
