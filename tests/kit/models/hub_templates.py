"""The chat templates of the real models, on the tiny models' tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from stages.prompt.chat import PromptBuilder
from stages.prompt.chat_template import ChatTemplate
from stages.prompt.tokenizer import load_tokenizer
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.tiny_stages import tiny_config

HUB_TEMPLATES = ("instruct", "thinking")
_FOLDER = Path(__file__).parents[2] / "fixtures" / "chat-templates"


def hub_template(name: str) -> str:
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def hub_prompt_builder(name: str) -> PromptBuilder:
    tokenizer = load_tokenizer(tiny_checkpoint() / "tokenizer.json")
    return PromptBuilder(tiny_config(), tokenizer, ChatTemplate(hub_template(name)))
