"""The official client's chat completions, unchanged, against a running pipeline."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from broker_pipeline.tools.demo.pictures import DemoPicture, scenes
from tests.kit.running.pipeline_client import PipelineClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="package")]

SCENE = scenes()[0]


def asked_about(scene: DemoPicture, *more: dict[str, Any]) -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(scene.path.read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "Describe this image."}]}, *more]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def test_the_sync_client(demo: PipelineClient) -> None:
    def ask() -> None:
        with openai.OpenAI(base_url=f"{demo.cluster.gateway_url}/v1", api_key="none", max_retries=0) as client:
            [model] = client.models.list().data
            assert client.models.retrieve(model.id).id == model.id
            raw = client.chat.completions.with_raw_response.create(model=model.id, messages=asked_about(SCENE))
            answer = raw.parse()
            assert raw.headers["x-request-id"] == answer._request_id
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (SCENE.expected, "stop")
            assert answer.usage is not None
            assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
            with client.chat.completions.create(model=model.id, messages=asked_about(SCENE), stream=True) as stream:
                assert text_of(list(stream)) == SCENE.expected

    await asyncio.to_thread(ask)


async def test_every_scene_at_once_and_as_streams(openai_client: openai.AsyncOpenAI, model: str) -> None:
    async def streamed(scene: DemoPicture) -> str:
        options: Any = {"include_usage": True}
        chunks = [
            chunk
            async for chunk in await openai_client.chat.completions.create(
                model=model, messages=asked_about(scene), stream=True, stream_options=options
            )
        ]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens_details is not None
        return text_of(chunks)

    assert await asyncio.gather(*map(streamed, scenes())) == [scene.expected for scene in scenes()]


async def test_the_clients_own_stream_of_events(openai_client: openai.AsyncOpenAI, model: str) -> None:
    async with openai_client.chat.completions.stream(model=model, messages=asked_about(SCENE)) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == SCENE.expected


async def test_several_outputs_with_seeds_and_log_probabilities(openai_client: openai.AsyncOpenAI, model: str) -> None:
    def ask(**fields: Any) -> Any:
        return openai_client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Describe this image."}],
            temperature=2.0,
            max_completion_tokens=8,
            logprobs=True,
            top_logprobs=3,
            extra_body={"ignore_eos": True},
            **fields,
        )

    both, second = await asyncio.gather(ask(n=2, seed=5), ask(seed=6))
    texts = [choice.message.content for choice in both.choices]
    assert texts[1] == second.choices[0].message.content, "output 1 has the next seed"
    assert texts[0] != texts[1]
    for choice in both.choices:
        assert choice.finish_reason == "length"
        assert len(choice.logprobs.content) == 8
        spelled = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
        assert choice.message.content.encode() in spelled or b"<|" in spelled
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


async def test_a_stop_within_tokens_cuts_exactly(openai_client: openai.AsyncOpenAI, model: str) -> None:
    middle = len(SCENE.expected) // 2
    stop = SCENE.expected[middle - 2 : middle + 2]
    expected = SCENE.expected[: SCENE.expected.index(stop)]
    whole = await openai_client.chat.completions.create(model=model, messages=asked_about(SCENE), stop=[stop, "zz"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (expected, "stop")
    assert (whole.choices[0].model_extra or {})["stop_reason"] == stop
    stream = await openai_client.chat.completions.create(
        model=model, messages=asked_about(SCENE), stop=stop, stream=True
    )
    assert text_of([chunk async for chunk in stream]) == expected


async def test_an_answer_that_is_gone_on_with(openai_client: openai.AsyncOpenAI, model: str) -> None:
    begun = SCENE.expected[: SCENE.expected.index(" ", 4)]
    answer = await openai_client.chat.completions.create(
        model=model,
        messages=asked_about(SCENE, {"role": "assistant", "content": begun}),
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert begun + (answer.choices[0].message.content or "") == SCENE.expected


async def test_a_client_that_goes_stops_its_generation(
    demo: PipelineClient, openai_client: openai.AsyncOpenAI, model: str
) -> None:
    stream = await openai_client.chat.completions.create(
        model=model, messages=asked_about(SCENE), max_tokens=3900, stream=True, extra_body={"ignore_eos": True}
    )
    chunk = await anext(aiter(stream))
    await stream.close()
    job_id = chunk.id.removeprefix("chatcmpl-")
    [record] = await demo.wait([job_id])
    assert record.status == "cancelled"
    assert len(await demo.tokens(job_id)) < 3900


async def test_errors_are_the_clients_own(openai_client: openai.AsyncOpenAI, model: str) -> None:
    async def refused(kind: type[openai.APIStatusError], **fields: Any) -> tuple[str | None, str | None]:
        request = {"model": model, "messages": asked_about(SCENE)} | fields
        with pytest.raises(kind) as caught:
            await openai_client.chat.completions.create(**request)
        assert caught.value.request_id
        return caught.value.code, caught.value.param

    broken = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
    long = [{"role": "user", "content": "word " * 4000}]
    assert await refused(openai.BadRequestError, temperature=3) == ("invalid_request", "temperature")
    assert await refused(openai.BadRequestError, n=1000) == ("invalid_request", "n")
    assert await refused(openai.BadRequestError, messages=long) == ("context_length_exceeded", "messages")
    assert await refused(openai.NotFoundError, model="none/such") == ("model_not_found", "model")
    assert await refused(openai.BadRequestError, messages=broken) == (
        "not_an_image",
        "messages[0].content[0].image_url.url",
    )
