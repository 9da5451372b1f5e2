"""Answers of a given form, by the official client's own helpers."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="package")]

_SPACES = (197, 198, 201, 220)
DRAWN: Any = {"extra_body": {"logit_bias": {str(token_id): -100 for token_id in _SPACES}}}
"""This little model has never seen JSON, and says spaces without end where these are possible."""
HI: Any = [{"role": "user", "content": "Describe this image."}]


class Caption(BaseModel):
    """What the answer shall be."""

    place: Literal["indoors", "outdoors"]
    is_bright: bool


async def test_parse_of_chat_and_of_responses(openai_client: openai.AsyncOpenAI, model: str) -> None:
    chat = await openai_client.chat.completions.parse(
        model=model, messages=HI, response_format=Caption, max_completion_tokens=400, **DRAWN
    )
    assert isinstance(chat.choices[0].message.parsed, Caption)
    response = await openai_client.responses.parse(
        model=model, input="Describe this image.", text_format=Caption, max_output_tokens=400, **DRAWN
    )
    assert isinstance(response.output_parsed, Caption)


async def test_a_call_that_is_enforced_whole_and_as_a_stream(openai_client: openai.AsyncOpenAI, model: str) -> None:
    parameters = {
        "type": "object",
        "properties": {"zone": {"enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    }
    tools: Any = [{"type": "function", "function": {"name": "clock", "parameters": parameters}}]
    choice: Any = {"type": "function", "function": {"name": "clock"}}
    asked: Any = {
        "model": model,
        "messages": HI,
        "tools": tools,
        "tool_choice": choice,
        "max_completion_tokens": 400,
        **DRAWN,
    }
    whole = (await openai_client.chat.completions.create(**asked)).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls is not None
    [call] = whole.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, set(json.loads(call.function.arguments))) == ("clock", {"zone"})
    async with openai_client.chat.completions.stream(**asked) as stream:
        final = (await stream.get_final_completion()).choices[0]
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == call.function.arguments


async def test_a_choice(openai_client: openai.AsyncOpenAI, model: str) -> None:
    answer = await openai_client.chat.completions.create(
        model=model, messages=HI, extra_body={"structured_outputs": {"choice": ["cat", "dog"]}}
    )
    assert answer.choices[0].message.content in {"cat", "dog"}
