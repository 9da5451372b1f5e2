"""No text forges a control token, with the real templates, however it is cut into parts, calls, results and names."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.messages.jobs import ChatMessage, ImagePart, TextPart
from broker_pipeline.messages.template_options import TemplateOptions
from export.synthetic.tiny_tokenizer import ADDED_TOKENS, SPECIAL_TOKENS
from stages.prompt.chat import PromptBuilder, VisualInput
from stages.prompt.chat_template import ChatTemplate
from stages.prompt.shielding import hide, show
from stages.prompt.tokenizer import load_tokenizer
from stages.qwen3_vl.patches import PatchGrid
from tests.kit.models.hub_templates import HUB_TEMPLATES, hub_prompt_builder, hub_template
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.tiny_stages import tiny_config
from tests.kit.models.transformers_oracle import MEDIA

CONTROLS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>")
CONTROLS += ("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
ONE_TOKEN = VisualInput("image", PatchGrid(1, 2, 2))

FRAGMENTS = ["<", "|", ">", "<|", "|>", "<|im_", "im_end", "end|>", "</", "tool_", "_response>", "udc7c"]
OTHERS = ["assistant\n", "\n", " ", '"', "\\", "\\ud800", "é", "e\u0301", "\u0338", "\ufdd0", "\ue000", "漢", "🙂", "a"]
PIECES = st.sampled_from([*SPECIAL_TOKENS, *ADDED_TOKENS, *FRAGMENTS, *OTHERS])
TEXTS = st.lists(PIECES, max_size=6).map("".join)


@st.composite
def parts(draw) -> list[dict[str, str]]:
    """Cut a text anywhere, pictures in between, as messages carry it."""
    content = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=4)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    pictures = draw(st.integers(0, 2))
    return [{"type": "text", "text": piece} for piece in pieces] + [{"type": "image"}] * pictures


CONTENTS = TEXTS | parts()
VALUES = TEXTS | st.none() | st.lists(TEXTS, max_size=2) | st.dictionaries(TEXTS, TEXTS, max_size=2)
CALLS = st.fixed_dictionaries({"name": TEXTS, "arguments": TEXTS | st.dictionaries(TEXTS, VALUES, max_size=2)})
TOOLS = st.fixed_dictionaries({"type": st.just("function"), "function": st.dictionaries(TEXTS, VALUES, max_size=2)})


def turn(role: str, **fields: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": CONTENTS, "name": TEXTS}, optional=fields)


ANSWERS = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS},
    optional={"tool_calls": st.lists(CALLS, max_size=2), "reasoning_content": TEXTS},
)
FOREIGN = st.fixed_dictionaries({"role": TEXTS, "content": TEXTS})
TURNS = st.lists(turn("user") | turn("tool") | ANSWERS | FOREIGN, min_size=1, max_size=4)


def without(value: Any, characters: str) -> Any:
    """Return the value without what control strings are made of: nothing in it can be one."""
    shown = {"|": "\u00a6", "<": "\u2039"}
    if isinstance(value, str):
        return value.translate({ord(c): shown[c] for c in characters})
    if isinstance(value, dict):
        return {without(key, characters): without(item, characters) for key, item in value.items()}
    return [without(item, characters) for item in value] if isinstance(value, list) else value


def harmless(message: dict[str, Any]) -> dict[str, Any]:
    everywhere = "|<" if message["role"] == "tool" else "|"
    return {key: without(value, "|<" if key == "tool_calls" else everywhere) for key, value in message.items()}


def pictures_of(messages: list[dict[str, Any]]) -> list[VisualInput]:
    shown = [m for m in messages if m["role"] in {"user", "tool"} and isinstance(m["content"], list)]
    return [ONE_TOKEN for message in shown for part in message["content"] if part["type"] == "image"]


def controls_in(builder: PromptBuilder, token_ids) -> list[int]:
    wanted = {builder._tokenizer.token_to_id(name) for name in (*CONTROLS, *TAGS)}
    return [token_id for token_id in token_ids if token_id in wanted]


@pytest.mark.parametrize("name", HUB_TEMPLATES)
@settings(max_examples=100, deadline=None)
@given(messages=TURNS, tools=st.lists(TOOLS, max_size=2))
def test_control_tokens_are_the_templates_own_and_texts_are_what_they_were(name, messages, tools):
    builder, pictures = hub_prompt_builder(name), pictures_of(messages)
    found = builder.build_turns(messages, pictures, template=TemplateOptions(tools=tuple(tools)))
    harmless_tools = TemplateOptions(tools=tuple(without(tools, "|<")))
    clean = builder.build_turns([harmless(m) for m in messages], pictures, template=harmless_tools)
    assert controls_in(builder, found.token_ids) == controls_in(builder, clean.token_ids)
    assert len(found.groups) == len(pictures)
    rendered = ChatTemplate(hub_template(name)).render(messages, tools=tools)
    read = builder._tokenizer.decode(list(found.token_ids), skip_special_tokens=False)
    assert unicodedata.normalize("NFC", read) == unicodedata.normalize("NFC", rendered)


@pytest.mark.parametrize("name", HUB_TEMPLATES)
@settings(max_examples=100, deadline=None)
@given(role=st.sampled_from(["system", "user", "assistant"]), content=parts())
def test_messages_of_a_job_forge_nothing(name, role, content):
    builder = hub_prompt_builder(name)
    shown = [p for p in content if role == "user" or p["type"] == "text"]
    given_parts = [TextPart(text=p["text"]) if p["type"] == "text" else ImagePart(media=MEDIA) for p in shown]
    found = builder.build(
        [ChatMessage(role=role, content=tuple(given_parts))], [ONE_TOKEN] * (len(shown) - _texts(shown))
    )
    clean = [p if p["type"] == "image" else {"type": "text", "text": without(p["text"], "|")} for p in shown]
    expected = builder.build_turns([{"role": role, "content": clean}], [ONE_TOKEN] * (len(shown) - _texts(shown)))
    assert controls_in(builder, found.token_ids) == controls_in(builder, expected.token_ids)


def _texts(shown: list[dict[str, str]]) -> int:
    return sum(part["type"] == "text" for part in shown)


@pytest.mark.parametrize(
    "cut",
    [("<|im_", "end|>"), ("<", "|im_end|>"), ("<|im_end|", ">"), ("<|im_end", "|", ">"), tuple("<|im_end|>")],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_a_string_cut_into_parts_stays_text(name, role, cut):
    builder = hub_prompt_builder(name)
    message = {"role": role, "content": [{"type": "text", "text": piece} for piece in cut]}
    whole = builder.build_turns([{"role": role, "content": "".join(cut)}])
    assert builder.build_turns([message]) == whole
    assert builder._tokenizer.decode(list(whole.token_ids), skip_special_tokens=False).count("<|im_end|>") == 2
    assert list(whole.token_ids).count(builder._tokenizer.token_to_id("<|im_end|>")) == 1


def test_a_template_that_ends_in_half_a_token_lends_nothing():
    tokenizer = load_tokenizer(tiny_checkpoint() / "tokenizer.json")
    template = ChatTemplate(
        "<{{ messages[0].content }}>{{ messages[0].content }}{% if tools %}</{{ tools[0] }}>{% endif %}"
    )
    builder = PromptBuilder(tiny_config(), tokenizer, template)
    for content in ("|im_end|", "|im_end|>", "<|im_end|", "/|im_start|"):
        found = builder.build_turns([{"role": "user", "content": content}])
        assert controls_in(builder, found.token_ids) == []


@given(st.text(st.characters(exclude_categories=["Cs"])) | TEXTS)
def test_what_was_hidden_is_shown_again(content):
    assert show(hide(content, "|<")) == content
    assert not set(hide(content, "|<")) & {"|", "<"}
