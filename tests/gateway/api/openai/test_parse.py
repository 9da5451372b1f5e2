"""What a chat completion means as a job, and what of it is refused by which name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from broker_pipeline.errors import InvalidRequestError, ModelNotFoundError, PromptTooLongError
from broker_pipeline.messages.jobs import PixelBounds, TextPart
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.structured_outputs import StructuredOutputs
from broker_pipeline.pictures.rule import PictureRule
from gateway.api.openai.chat.parse import ChatDraft, parse
from gateway.api.openai.chat.request import ChatRequest
from gateway.api.openai.sampling import REFUSED
from gateway.intake.job_draft import ImagePlace, Link, VideoFilePlace, VideoPlace
from gateway.settings import Limits
from tests.kit.wrong_values import field_types, wrong_values

LIMITS = Limits(model="m", vocab_size=1000, max_tokens_in_all=4096, longest_token_bytes=16)
USER = {"role": "user", "content": "Hi"}
STRICT = {"repetition_detection", "structured_outputs"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}, "strict": True}}


def read(**fields: Any) -> ChatDraft:
    return parse(json.dumps({"model": "m", "messages": [USER]} | fields).encode(), LIMITS)


def content(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": parts}]}


def refused(**fields: Any) -> str | None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**fields)
    return caught.value.field


def test_every_sampling_field_reaches_the_job() -> None:
    asked = {
        "min_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.9,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "logit_bias": {"17": -100},
        "bad_words": ["no"],
        "seed": -(2**63),
        "n": 2,
        "stop": "END",
        "stop_token_ids": [5],
        "ignore_eos": True,
        "repetition_detection": {"max_pattern_size": 2, "min_count": 9},
    }
    more = {"max_completion_tokens": 7, "max_tokens": 9, "top_k": -1, "logprobs": True, "top_logprobs": 4}
    sampling = read(**asked, **more).sampling
    assert (sampling.max_tokens, sampling.top_k, sampling.logprobs) == (7, 0, 4)
    assert (sampling.logit_bias, sampling.stop) == ({17: -100.0}, ("END",))
    left = {name for name in SamplingParams.__struct_fields__ if getattr(sampling, name) is None}
    left.remove("structured_outputs")  # not with `ignore_eos`; see below
    assert not left, "a field that jobs have and chat completions cannot ask for"


def test_what_is_left_out_is_the_models() -> None:
    draft = read(stop=None, temperature=None, tools=None, unknown_field=[1], user="x", store=False)
    assert draft.sampling == SamplingParams()
    assert (draft.stream, draft.template.tools, draft.template.add_generation_prompt) == (False, (), True)
    assert read(logprobs=True).sampling.logprobs == 0
    assert read(max_tokens=9).sampling.max_tokens == 9


def test_pictures_in_every_form_and_their_places() -> None:
    draft = read(
        **content(
            {"type": "image_url", "image_url": {"url": "data:a", "detail": "low"}},
            {"type": "text", "text": ""},
            {"type": "image_url", "image_url": "https://example.com/b"},
            {"type": "input_image", "image_url": "data:c", "detail": "high", "max_pixels": 99999},
            {"type": "input_text", "text": "What?"},
        )
    )
    paths = ["[0].image_url.url", "[2].image_url", "[3].image_url"]
    urls = ["data:a", "https://example.com/b", "data:c"]
    assert draft.sources == tuple(
        Link(f"messages[0].content{path}", url) for path, url in zip(paths, urls, strict=True)
    )
    assert draft.messages[0].content == (
        ImagePlace(0, PixelBounds(max_pixels=512 * 512)),
        ImagePlace(1, PixelBounds()),
        ImagePlace(2, PixelBounds(max_pixels=99999)),
        TextPart(text="What?"),
    )
    assert draft.named("messages[0].content[0]") == "messages[0].content[0].image_url.url"
    assert draft.named("messages[0].content[1]") == "messages[0].content[2].image_url", "the empty text is no part"
    assert draft.named("messages[0].content[3]") == "messages[0].content[4]"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 4096}, "max_tokens"),
        ({"max_completion_tokens": 4096}, "max_completion_tokens"),
        ({"max_completion_tokens": 4096, "max_tokens": 9}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, "messages"),
    ],
)
def test_what_is_too_long_is_named_as_it_was_sent(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        read(**fields)
    assert caught.value.field == field


def test_low_detail_is_no_more_than_the_workers_resize_to() -> None:
    small = msgspec.structs.replace(LIMITS, pictures=PictureRule(max_resized_pixels=81920))
    part = {"type": "image_url", "image_url": {"url": "data:a", "detail": "low"}}
    draft = parse(json.dumps({"model": "m"} | content(part)).encode(), small)
    assert draft.messages[0].content == (ImagePlace(0, PixelBounds(max_pixels=81920)),)


def test_videos_as_files_and_as_frames() -> None:
    file = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}, "fps": 1, "max_frames": 8}
    frames = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AA,BB"}}
    draft = read(**content(file, frames))
    assert draft.messages[0].content == (
        VideoFilePlace(0, 1.0, 8),
        VideoPlace(1, 3, 2.0, (), PixelBounds()),
    )
    assert [source.url for source in draft.sources[1:] if isinstance(source, Link)] == [
        "data:image/jpeg;base64,AA",
        "data:image/jpeg;base64,BB",
    ]


def test_turns_of_every_role() -> None:
    draft = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": ""},
        ],
        tools=[CLOCK],
        tool_choice="auto",
    )
    assert [message.role for message in draft.messages] == ["system", "user", "assistant", "tool"]
    assistant = draft.messages[2]
    assert (assistant.content, assistant.reasoning) == ((), "hm")
    assert [(call.name, call.arguments) for call in assistant.tool_calls] == [("clock", {"zone": "UTC"})]
    assert draft.template.tools == (
        {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}},
    )
    assert read(tools=[CLOCK], tool_choice="none").template.tools == ()


def test_answers_of_a_given_form() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert read(response_format=asked).sampling.structured_outputs == StructuredOutputs(json=schema)
    assert read(response_format={"type": "json_object"}).sampling.structured_outputs == StructuredOutputs(json=True)
    assert read(response_format={"type": "text"}).sampling.structured_outputs is None
    assert read(structured_outputs={"choice": ["a", "b"]}).sampling.structured_outputs is not None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_call_that_is_enforced_is_a_form(choice: Any) -> None:
    form = read(tools=[CLOCK], tool_choice=choice).sampling.structured_outputs
    assert form is not None
    assert form.grammar is not None
    assert "<tool_call>" in form.grammar
    assert '"const":"clock"' in form.grammar


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_some_of_the_tools_are_allowed(mode: str) -> None:
    tools = [CLOCK, {"type": "function", "function": {"name": "map"}}]
    named = [{"type": "function", "function": {"name": "map"}}]
    draft = read(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}})
    assert [tool["function"]["name"] for tool in draft.template.tools] == ["map"]
    form = draft.sampling.structured_outputs
    assert (form is not None) == (mode == "required")
    assert form is None or ('"map"' in str(form.grammar) and "clock" not in str(form.grammar))


def test_what_the_template_is_told() -> None:
    assistant = {"role": "assistant", "content": "It is"}
    draft = read(messages=[USER, assistant], continue_final_message=True, add_generation_prompt=False)
    assert (draft.template.continue_final_message, draft.template.add_generation_prompt) == (True, False)
    assert read(chat_template_kwargs={"enable_thinking": False}).template.variables == {"enable_thinking": False}
    assert read(reasoning_effort="none").template.variables == {"enable_thinking": False}
    assert read(reasoning_effort="high").template.variables == {}


def test_every_value_out_of_range_is_named() -> None:
    checked = 0
    for name, kind in field_types(ChatRequest).items():
        for value in wrong_values(kind):
            if name == "chat_template_kwargs" and isinstance(value, dict):
                continue
            if isinstance(value, dict) and "no_such_field" in value and name not in STRICT:
                continue  # unknown fields are passed over
            field = refused(**{name: value})
            assert field == name or (field or "").startswith((f"{name}[", f"{name}.")), (name, value, field)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": "data:x"}]}]},
            "messages[0].content",
        ),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        (content({"type": "input_audio"}), "messages[0].content[0].type"),
        (content({"type": "image_url", "image_url": {"url": ""}}), "messages[0].content[0].image_url.url"),
        (content(*[{"type": "image_url", "image_url": "data:x"}] * 65), "messages[0].content[64].image_url"),
        (
            content({"type": "image_url", "image_url": "data:x", "min_pixels": 9, "max_pixels": 8}),
            "messages[0].content[0].min_pixels",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stream_options": {}}, "stream_options"),
        ({"logit_bias": {"1000": 1}}, "logit_bias"),
        ({"stop_token_ids": [1000]}, "stop_token_ids"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [CLOCK],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "map"}}]},
                },
            },
            "tool_choice.allowed_tools.tools[0]",
        ),
        ({"tools": [CLOCK], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, Any], field: str) -> None:
    assert refused(**fields) == field


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_would_change_the_answer_are_no_silent_nothing(name: str) -> None:
    assert refused(**{name: {"x": 1}}) == name
    assert read(**{name: None})


def test_models_and_prompts_that_cannot_be() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'other'.*'m'") as caught:
        read(model="other")
    assert caught.value.field == "model"
    assert parse(json.dumps({"model": "any", "messages": [USER]}).encode(), Limits()).model == "any", "nobody knows"
    with pytest.raises(PromptTooLongError):
        read(max_tokens=4096)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": "m"}', b"\xff", b"[" * 100_000])
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parse(body, LIMITS)


def test_a_schema_of_a_tool_that_has_to_be_called_is_refused_as_the_tools() -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "nonsense"}}}
    assert read(tools=[tool]).template.tools, "nothing holds the answer to it"
    with pytest.raises(InvalidRequestError) as caught:
        read(tools=[CLOCK, tool], tool_choice="required")
    assert (caught.value.field, "nonsense" in caught.value.message, "start:" in caught.value.message) == (
        "tools",
        True,
        False,
    )
