"""Prompts that the captioner is trained to answer; the first is the default."""

from __future__ import annotations

DEFAULT_PROMPT = "Describe this image."

PROMPTS: tuple[str, ...] = (
    DEFAULT_PROMPT,
    "Describe the image.",
    "Describe this picture.",
    "Caption this image.",
    "Write a caption for this image.",
    "Write a short caption.",
    "What is in this image?",
    "What is in the picture?",
    "What do you see?",
    "What can you see in this picture?",
    "What does this image show?",
    "Please describe this image in one sentence.",
    "Describe this image in one sentence.",
    "Tell me what is in the picture.",
    "Caption:",
    "",
)

SYSTEM_PROMPTS: tuple[str, ...] = ("You are a helpful assistant.", "You write captions.")
