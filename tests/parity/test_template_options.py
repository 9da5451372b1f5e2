"""What jobs tell a chat template besides texts, against transformers: tools and calls, the template's own variables,
and prompts that end within the last message.
"""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import ChatMessage, TextPart
from broker_pipeline.messages.template_options import TemplateOptions, ToolCall
from stages.prompt.chat import PromptBuilder
from stages.prompt.chat_template import ChatTemplate
from stages.prompt.tokenizer import load_tokenizer
from tests.kit.models.hub_templates import HUB_TEMPLATES, hub_prompt_builder, hub_template
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.models.tiny_stages import tiny_config

CLOCK = {"type": "function", "function": {"name": "clock", "description": "é <b>", "parameters": {"type": "object"}}}
ARGUMENTS = {"zone": "Zürich", "days": [1, 2.5, None]}


def said(role: Any, text: str = "", **more: Any) -> ChatMessage:
    return ChatMessage(role=role, content=(TextPart(text=text),) if text else (), **more)


CONVERSATION = [
    said("system", "Be brief."),
    said("user", "What time is it?"),
    said("assistant", reasoning="hm", tool_calls=(ToolCall(name="clock", arguments=ARGUMENTS), ToolCall(name="clock"))),
    said("tool", "12:00"),
    said("tool", "13:00"),
    said("assistant", "  It is "),
]


def as_transformers_has_it(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": "".join(part.text for part in message.content)}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        functions = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        turn["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return turn


def expected_ids(source: str, messages: list[ChatMessage], **options: Any) -> list[int]:
    turns = [as_transformers_has_it(message) for message in messages]
    [rendered], _ = render_jinja_template(conversations=[turns], chat_template=source, **options)
    return list(AutoTokenizer.from_pretrained(tiny_checkpoint())(rendered)["input_ids"])


@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_tools_and_calls_of_a_job(name: str) -> None:
    for messages in (CONVERSATION[:5], CONVERSATION):
        for opens in (True, False):
            found = hub_prompt_builder(name).build(
                messages, [], template=TemplateOptions(tools=(CLOCK,), add_generation_prompt=opens)
            )
            expected = expected_ids(hub_template(name), messages, tools=[CLOCK], add_generation_prompt=opens)
            assert list(found.token_ids) == expected


@pytest.mark.parametrize("name", HUB_TEMPLATES)
def test_a_message_to_go_on_with(name: str) -> None:
    options = TemplateOptions(continue_final_message=True, add_generation_prompt=False)
    found = hub_prompt_builder(name).build(CONVERSATION[:2] + CONVERSATION[5:], [], template=options)
    messages = CONVERSATION[:2] + CONVERSATION[5:]
    assert list(found.token_ids) == expected_ids(hub_template(name), messages, continue_final_message=True)


def test_a_message_that_ends_without_a_text() -> None:
    options = TemplateOptions(continue_final_message=True)
    with pytest.raises(InvalidRequestError, match="without a text"):
        hub_prompt_builder("instruct").build(CONVERSATION[:3], [], template=options)


def builder_of(template: str) -> PromptBuilder:
    tokenizer = load_tokenizer(tiny_checkpoint() / "tokenizer.json")
    return PromptBuilder(tiny_config(), tokenizer, ChatTemplate(template))


def test_variables_reach_the_template_and_forge_nothing() -> None:
    builder = builder_of("{{ enable_thinking }}|{{ mood }}|{{ add_vision_id }}")
    options = TemplateOptions(variables={"enable_thinking": False, "mood": "<|im_end|>", "add_vision_id": True})
    ids = builder.build([said("user", "x")], [], template=options).token_ids
    tokenizer = load_tokenizer(tiny_checkpoint() / "tokenizer.json")
    assert tokenizer.decode(list(ids), skip_special_tokens=False) == "False|<|im_end|>|True"
    assert tokenizer.token_to_id("<|im_end|>") not in ids


@pytest.mark.parametrize("name", ["messages", "tools", "eos_token", "raise_exception"])
def test_what_a_template_has_from_elsewhere_is_no_variable(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TemplateOptions(variables={name: []})


@pytest.mark.parametrize(("name", "closes"), [("thinking", True), ("instruct", False)])
def test_a_template_that_always_thinks_is_told_not_to(name: str, closes: bool) -> None:
    builder, messages = hub_prompt_builder(name), CONVERSATION[:2]
    open_ids = builder.build(messages, []).token_ids
    shut_ids = builder.build(messages, [], template=TemplateOptions(variables={"enable_thinking": False})).token_ids
    tokenizer = load_tokenizer(tiny_checkpoint() / "tokenizer.json")
    added = tokenizer.decode(list(shut_ids[len(open_ids) :]), skip_special_tokens=False)
    assert (shut_ids[: len(open_ids)], added) == (open_ids, "\n</think>\n\n" if closes else "")


def test_what_is_nested_too_deeply() -> None:
    nested: dict[str, Any] = {}
    for _ in range(5000):
        nested = {"x": nested}
    with pytest.raises(InvalidRequestError, match="nested"):
        hub_prompt_builder("instruct").build(CONVERSATION[:2], [], template=TemplateOptions(tools=(nested,)))
