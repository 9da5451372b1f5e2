"""What transformers generates for the same checkpoint, pictures and prompt."""

from __future__ import annotations

from functools import cache

import torch

from broker_pipeline.messages.jobs import ChatMessage, ImagePart, TextPart
from stages.prompt.chat import VisualInput
from stages.prompt.images import decode_image
from stages.prompt.visual_frames import image_frames
from tests.kit.models import transformers_oracle as oracle


@cache
def reference_tokens(variant: oracle.Variant, pictures: tuple[bytes, ...], prompt: str, max_tokens: int) -> list[int]:
    """Greedy tokens of `generate`; the picture's pixels come from our preprocessing, all else is transformers'."""
    vision = oracle.config_of(variant).vision
    patches = tuple(
        image_frames(decode_image(content), vision, oracle.IMAGE_BUDGET).to_patches() for content in pictures
    )
    visuals = tuple(VisualInput("image", each.grid) for each in patches)
    parts = (*[ImagePart(media=oracle.MEDIA)] * len(pictures), TextPart(text=prompt))
    built = oracle.prompt_builder(variant).build([ChatMessage(role="user", content=parts)], visuals)
    with torch.random.fork_rng():
        return oracle.reference_tokens(variant, oracle.Scene(built, visuals, patches, vision), max_tokens)
