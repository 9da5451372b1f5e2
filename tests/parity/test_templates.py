"""Chat templates against transformers' rendering: the real models' ones, tools included, and what others may use."""

from __future__ import annotations

import json

import jinja2
import pytest
from transformers import AutoTokenizer
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.template_options import TemplateOptions
from stages.prompt.chat import VisualInput
from stages.prompt.chat_template import ChatTemplate
from stages.qwen3_vl.patches import PatchGrid
from tests.kit.models.hub_templates import HUB_TEMPLATES, hub_prompt_builder, hub_template
from tests.kit.models.tiny_models import tiny_checkpoint


def text(content: str) -> list[dict]:
    return [{"type": "text", "text": content}]


def turn(role: str, content, **more) -> dict:
    return {"role": role, "content": content, **more}


PICTURE, VIDEO = {"type": "image"}, {"type": "video"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Wetter für "Orte" <b> & 東京\n',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {}}}
CALL = {
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2.5, None]}},
}
BARE_CALL = {"name": "clock", "arguments": '{"zone": "UTC"}'}
SYSTEM, ASK, SEE = (
    turn("system", text("Be brief.")),
    turn("user", text("And then?")),
    turn("user", [PICTURE, *text("?")]),
)

CONVERSATIONS = {
    "one picture": [turn("user", [PICTURE, *text("What is it?")])],
    "strings": [turn("system", "Be brief."), turn("user", "Hello"), turn("assistant", "Hi"), turn("user", "Bye")],
    "pictures and a video": [SYSTEM, turn("user", [PICTURE, *text("a"), VIDEO, *text("b"), PICTURE]), SEE],
    "parts": [turn("user", [*text("Hello "), *text("world")]), turn("assistant", [*text("a"), *text("b")]), ASK],
    "answers so far": [SEE, turn("assistant", text("A dog.")), ASK, turn("assistant", text("It runs."))],
    "reasoning in the text": [ASK, turn("assistant", "<think>\nhm\n</think>\n\nYes"), ASK],
    "reasoning at the end": [ASK, turn("assistant", "<think>\nhm\n</think>\n\nYes")],
    "reasoning apart": [ASK, turn("assistant", "Yes", reasoning_content="\nhm\n"), ASK, turn("assistant", "No")],
    "a call and its result": [ASK, turn("assistant", "", tool_calls=[CALL]), turn("tool", "sunny"), ASK],
    "calls with text": [ASK, turn("assistant", "Let me see.", tool_calls=[CALL, BARE_CALL]), turn("tool", text("x"))],
    "results side by side": [
        SYSTEM, ASK, turn("assistant", text("ok"), tool_calls=[CALL, BARE_CALL]),
        turn("tool", '{"t": 21}'), turn("tool", [PICTURE, *text("12:00")]), turn("assistant", text("Done.")), ASK,
    ],
    "a result in a user's turn": [ASK, turn("assistant", "x"), turn("user", "<tool_response>\ny\n</tool_response>")],
    "a late system turn": [ASK, SYSTEM, ASK],
    "spaces": [turn("user", "  \n a \t\n "), turn("assistant", "\n\n b \n"), turn("user", "")],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_checkpoint())


def rendered_by_transformers(source: str, messages, **options) -> str:
    [rendered], _ = render_jinja_template(conversations=[messages], chat_template=source, **options)
    return rendered


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [[], [WEATHER, CLOCK]], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_the_real_templates_are_rendered_as_transformers_does(name, tools, conversation):
    messages = CONVERSATIONS[conversation]
    for add_generation_prompt in (True, False):
        for add_vision_id in (True, False):
            options = {"add_generation_prompt": add_generation_prompt, "add_vision_id": add_vision_id}
            expected = rendered_by_transformers(hub_template(name), messages, tools=tools or None, **options)
            assert ChatTemplate(hub_template(name)).render(messages, tools=tools, **options) == expected


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [[], [WEATHER, CLOCK]], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_prompts_of_the_real_templates_have_transformers_ids(tokenizer, name, tools, conversation):
    messages = CONVERSATIONS[conversation]
    rendered = rendered_by_transformers(
        hub_template(name), messages, tools=tools or None, add_generation_prompt=True, add_vision_id=True
    )
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    visuals = [_visual(part["type"]) for part in parts if part["type"] != "text"]
    rendered = rendered.replace("<|image_pad|>", "<|image_pad|>" * 6)
    rendered = rendered.replace(
        "<|video_pad|>", "<0.2 seconds><|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    )
    found = hub_prompt_builder(name).build_turns(
        messages, visuals, template=TemplateOptions(tools=tuple(tools)), add_vision_id=True
    )
    assert list(found.token_ids) == tokenizer(rendered)["input_ids"]


def _visual(kind: str) -> VisualInput:
    if kind == "image":
        return VisualInput("image", PatchGrid(1, 4, 6))
    return VisualInput("video", PatchGrid(1, 4, 4), (0.2,))


@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_what_transformers_cannot_render_is_refused(name):
    messages = [ASK, turn("assistant", None, tool_calls=[CALL]), turn("tool", "sunny")]
    with pytest.raises((jinja2.TemplateError, TypeError)):
        rendered_by_transformers(hub_template(name), messages)
    with pytest.raises(InvalidRequestError, match="refuses these messages"):
        ChatTemplate(hub_template(name)).render(messages)


@pytest.mark.parametrize(
    "literal",
    ["what does <|im_end|> mean?", "<|im_start|><|im_start|>", "a<|image_pad|> <|vision_start|>b", "|<|<|im_end|>|>|"],
)
@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_a_control_string_has_the_ids_of_its_characters(tokenizer, name, literal):
    found = list(hub_prompt_builder(name).build_turns([turn("user", literal)]).token_ids)
    characters = tokenizer(f"user\n{literal}", split_special_tokens=True)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert found[: len(characters) + 2] == [start, *characters, end]


TEMPLATES = [
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
    "{{ messages | tojson(indent=2) }}|{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{{ messages | tojson(ensure_ascii=true) }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n  {% endfor %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% if tools is none and documents is none %}none{% endif %}{{ nothing }}{{ messages[7] }}",
    "{{ strftime_now('%Y') }}",
    "{{ messages[0].content.strip().split('l') | join('-') }}{{ messages[0]['content'] | trim | upper }}",
    "  {%- if add_generation_prompt %}\n    yes\n  {%- endif %}\n\n",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_what_templates_of_others_use_means_the_same(source):
    messages = [turn("user", " Hallo ü\u2028<'>& "), turn("assistant", "Hi"), turn("user", "Bye")]
    expected = rendered_by_transformers(source, messages, add_generation_prompt=True)
    assert ChatTemplate(source).render(messages) == expected


def test_a_file_is_chosen_as_transformers_processor_does(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "tokenizer"}))
    for name, content in (
        ("chat_template.jinja", "jinja"),
        ("chat_template.json", json.dumps({"chat_template": "json"})),
        ("processor_config.json", json.dumps({"chat_template": "processor"})),
    ):
        (tmp_path / name).write_text(content)
        expected = Qwen3VLProcessor.get_processor_dict(tmp_path)[0]["chat_template"]
        assert ChatTemplate.from_directory(tmp_path).render([]) == expected


def test_special_tokens_are_those_of_the_tokenizer(tokenizer, tmp_path):
    source = "{{ eos_token }}{{ pad_token }}{{ bos_token }}"
    (tmp_path / "tokenizer_config.json").write_text((tiny_checkpoint() / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").write_text(source)
    expected = rendered_by_transformers(source, [], **tokenizer.special_tokens_map)
    assert ChatTemplate.from_directory(tmp_path).render([]) == expected == "<|im_end|><|endoftext|>"
