"""The official client's responses, unchanged, against a running pipeline."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest

from broker_pipeline.tools.demo.pictures import scenes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="package")]

SCENE = scenes()[1]


def asked() -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(SCENE.path.read_bytes()).decode()
    content = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": "Describe this image."},
    ]
    return [{"role": "user", "content": content}]


async def test_create_retrieve_and_go_on(openai_client: openai.AsyncOpenAI, model: str) -> None:
    first = await openai_client.responses.create(model=model, input=asked())
    assert (first.output_text, first.status) == (SCENE.expected, "completed")
    assert first.usage is not None
    assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens
    assert (await openai_client.responses.retrieve(first.id)).output_text == SCENE.expected
    second = await openai_client.responses.create(model=model, input="Again.", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens, "with the picture"


async def test_the_clients_own_stream_of_events(openai_client: openai.AsyncOpenAI, model: str) -> None:
    async with openai_client.responses.stream(model=model, input=asked()) as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert text == final.output_text == SCENE.expected


async def test_an_answer_that_is_cut(openai_client: openai.AsyncOpenAI, model: str) -> None:
    answer = await openai_client.responses.create(model=model, input=asked(), max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_errors_are_the_clients_own(openai_client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await openai_client.responses.create(model=model, input="Hi", previous_response_id="resp_none")
    assert missing.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as wrong:
        await openai_client.responses.create(model=model, input="Hi", temperature=9)
    assert wrong.value.param == "temperature"
