"""A job's result as a chat completion, and its tokens as chunks, which together say the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.messages.jobs import (
    ChatMessage,
    Choice,
    JobRecord,
    JobResult,
    JobSpec,
    TextPart,
    TokenEntry,
    Usage,
)
from broker_pipeline.messages.sampling import SamplingParams, TokenLogprob
from broker_pipeline.messages.template_options import TemplateOptions
from gateway.api.openai.chat.chunks import CompletionChunks
from gateway.api.openai.chat.completion import completion
from gateway.api.openai.chat.parse import ChatDraft
from gateway.api.openai.chat.request import StreamOptions

CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
TOOLS = TemplateOptions(tools=({"type": "function", "function": {"name": "clock"}},))


def spec_of(sampling: SamplingParams, template: TemplateOptions) -> JobSpec:
    messages = (ChatMessage(role="user", content=(TextPart(text="Hi"),)),)
    return JobSpec(job_id="j", created_at=5.5, messages=messages, sampling=sampling, template=template)


def choice(text: str, reasoning: str = "", reason: Any = "stop", stop_reason: Any = None) -> Choice:
    return Choice(
        text=text,
        reasoning=reasoning,
        finish_reason=reason,
        stop_reason=stop_reason,
        num_output_tokens=4,
        num_reasoning_tokens=1,
    )


def record_of(*choices: Choice) -> JobRecord:
    usage = Usage(num_prompt_tokens=10, num_visual_tokens=6, num_output_tokens=4, num_reasoning_tokens=1)
    first = choices[0]
    result = JobResult(
        text=first.text,
        reasoning=first.reasoning,
        finish_reason=first.finish_reason,
        stop_reason=first.stop_reason,
        usage=usage,
        choices=choices if len(choices) > 1 else (),
        model="m",
    )
    return JobRecord(job_id="j", status="succeeded", created_at=5.5, result=result)


def answered(*choices: Choice, template: TemplateOptions | None = None) -> dict[str, Any]:
    spec = spec_of(SamplingParams(), template or TemplateOptions())
    return dict(as_sent(completion(spec, record_of(*choices))))


def test_a_plain_answer() -> None:
    assert answered(choice("A dog.")) == {
        "id": "chatcmpl-j",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A dog.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }


@pytest.mark.parametrize(
    ("given_choice", "message", "reason"),
    [
        (choice(""), {"content": ""}, "stop"),
        (choice("Yes", "hm"), {"content": "Yes", "reasoning": "hm", "reasoning_content": "hm"}, "stop"),
        (choice("", "hm", "length"), {"content": None, "reasoning": "hm", "reasoning_content": "hm"}, "length"),
        (choice(CALL), {"content": None, "tool_calls": [0]}, "tool_calls"),
        (choice(f"So.\n{CALL}\n{CALL}"), {"content": "So.", "tool_calls": [0, 1]}, "tool_calls"),
        (choice(CALL[:30], reason="length"), {"content": CALL[:30]}, "length"),
    ],
)
def test_reasoning_and_calls(given_choice: Choice, message: dict[str, Any], reason: str) -> None:
    [found] = answered(given_choice, template=TOOLS)["choices"]
    function = {"name": "clock", "arguments": '{"zone":"UTC"}'}
    if "tool_calls" in message:
        calls = [{"id": f"call_j_0_{n}", "type": "function", "function": function} for n in message["tool_calls"]]
        message = message | {"tool_calls": calls}
    assert found["message"] == {"role": "assistant", "refusal": None} | message
    assert found["finish_reason"] == reason


def test_without_tools_a_call_is_text() -> None:
    [found] = answered(choice(CALL))["choices"]
    assert (found["message"]["content"], found["finish_reason"]) == (CALL, "stop")


def test_log_probabilities_have_the_bytes_of_half_characters() -> None:
    top = (
        TokenLogprob(token_id=1, logprob=-0.5, spelling=b"\xc3"),
        TokenLogprob(token_id=2, logprob=-2.0, spelling=b"a"),
    )
    tokens = [TokenEntry(token_id=1, logprob=-0.5, spelling=b"\xc3", top=top)]
    found = completion(spec_of(SamplingParams(logprobs=2), TemplateOptions()), record_of(choice("")), tokens)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    [token] = logprobs.content
    assert (token.token, token.bytes, token.logprob) == ("\ufffd", (0xC3,), -0.5)
    assert [(each.token, each.bytes) for each in token.top_logprobs] == [("\ufffd", (0xC3,)), ("a", (97,))]


PIECES = st.sampled_from(["A ", "dog", "\n", "é", "<tool_call>", CALL, "</tool_call>", "{"])
OUTPUT = st.tuples(st.lists(st.sampled_from(["hm", "\n"]), max_size=3), st.lists(PIECES, max_size=6))


@given(st.lists(OUTPUT, min_size=1, max_size=3), st.booleans(), st.integers(1, 5))
def test_chunks_add_up_to_the_completion(outputs: list[Any], has_tools: bool, num_at_once: int) -> None:
    tokens = [
        TokenEntry(token_id=1, reasoning=text * is_reasoning, text=text * (not is_reasoning), choice=number)
        for number, (reasoning, texts) in enumerate(outputs)
        for is_reasoning, part in ((True, reasoning), (False, texts))
        for text in part
    ]
    template = TOOLS if has_tools else TemplateOptions()
    sampling = SamplingParams(n=len(outputs))
    record = record_of(
        *(
            choice("".join(texts), "".join(reasoning), stop_reason=[7, "#", None][number])
            for number, (reasoning, texts) in enumerate(outputs)
        )
    )
    assert record.result is not None
    draft = ChatDraft(
        messages=(),
        sources=(),
        sampling=sampling,
        metadata={},
        sent_as={},
        template=template,
        model="m",
        stream=True,
        stream_options=StreamOptions(include_usage=True),
    )
    chunks = CompletionChunks("j", 5, draft)
    said = list(chunks.begin(tokens[:num_at_once]))
    for start in range(0, len(tokens), num_at_once):
        said += chunks.take(tokens[start : start + num_at_once])
    said += chunks.end(record.result)
    whole = as_sent(completion(spec_of(sampling, template), record))
    assert [added_up(as_sent(said), number) for number in range(len(outputs))] == [
        {"reasoning": None, "tool_calls": [], **each["message"]}
        | {name: each[name] for name in ("finish_reason", "stop_reason")}
        for each in whole["choices"]
    ]
    assert [chunk["usage"] for chunk in as_sent(said)] == [None] * (len(said) - 1) + [whole["usage"]]


def as_sent(answer: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(answer))


def added_up(chunks: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Return what a client has of an output in the end."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "tool_calls": []}
    reasons = []
    stop_reasons = []
    for each in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == number):
        delta = each["delta"]
        for name in ("content", "reasoning", "reasoning_content"):
            message[name] += delta.get(name, "")
        for call in delta.get("tool_calls", ()):
            assert call.pop("index") == len(message["tool_calls"])
            message["tool_calls"].append(call)
        reasons += [each["finish_reason"]] if each["finish_reason"] else []
        stop_reasons += [each["stop_reason"]] if "stop_reason" in each else []
    [reason], [stop_reason] = reasons, stop_reasons
    if not message["reasoning"]:
        message["reasoning"] = None
        del message["reasoning_content"]
    if not message["content"] and (message["reasoning"] or message["tool_calls"]):
        message["content"] = None
    return {"role": "assistant", "refusal": None, **message, "finish_reason": reason, "stop_reason": stop_reason}
