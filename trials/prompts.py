"""Pictures and prompts as the workers of an artifact make them, for what computes without workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker_pipeline.messages.jobs import ChatMessage, ImagePart, MediaRef, TextPart
from stages.artifact import Artifact
from stages.prompt.chat import Prompt, PromptBuilder, VisualInput
from stages.prompt.images import decode_image
from stages.prompt.pixel_budgets import read_pixel_budgets
from stages.prompt.preprocess import Patches
from stages.prompt.visual_frames import image_frames

_UNNAMED = ImagePart(media=MediaRef(sha256="0" * 64, object_name="none", num_bytes=0))


class Prompts:
    """Prompts of one user turn: pictures, and then a text."""

    def __init__(self, artifact: Artifact) -> None:
        """Read the artifact's tokenizer, template and rules for pictures."""
        self._vision = artifact.config.vision
        self._builder = PromptBuilder.from_directory(artifact.config, artifact.directory)
        self._budget, _ = read_pixel_budgets(artifact.directory, self._vision)

    def patches(self, path: Path) -> Patches:
        """Decode, resize and cut one picture."""
        return image_frames(decode_image(path.read_bytes()), self._vision, self._budget).to_patches()

    def build(self, text: str, pictures: Sequence[Patches]) -> Prompt:
        """Return the tokens of pictures and a text."""
        message = ChatMessage(role="user", content=(*[_UNNAMED] * len(pictures), TextPart(text=text)))
        return self._builder.build([message], [VisualInput("image", each.grid) for each in pictures])
