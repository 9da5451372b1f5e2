"""Responses: what a request means, what it is answered with, and how a conversation goes on."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError
from openai.types.responses import Response as OpenAIResponse

from broker_pipeline.errors import Failure, InvalidRequestError, PromptTooLongError
from broker_pipeline.messages.jobs import (
    ChatMessage,
    FinishReason,
    ImagePart,
    JobRecord,
    JobResult,
    JobSpec,
    TextPart,
    TokenEntry,
    Usage,
)
from broker_pipeline.messages.template_options import TemplateOptions
from gateway.api.openai.responses.events import ResponseEvents
from gateway.api.openai.responses.parse import ResponseDraft, parse, read_request
from gateway.api.openai.responses.response import response
from gateway.settings import Limits
from gateway.wiring import Gateway
from tests.kit.acting.conductor import ActingConductor
from tests.kit.waiting import eventually

URL = "/v1/responses"
LIMITS = Limits(model="m", vocab_size=1000, max_tokens_in_all=4096, longest_token_bytes=16)
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object"}, "strict": True}

NOT_HERE = {
    *("access_programs", "conversation", "image", "input_transformations", "moderation", "prompt", "tool_usage"),
    *("prompt_cache_diagnostics", "prompt_cache_options", "prompt_cache_retention"),
}
"""Fields of OpenAI's object, all of which may be left out, for what a gateway does not have."""


def read(**fields: Any) -> ResponseDraft:
    body = json.dumps({"model": "m", "input": "Hi"} | fields).encode()
    return parse(read_request(body), LIMITS, None)


def test_a_text_and_instructions() -> None:
    draft = read(
        instructions="Be brief.", max_output_tokens=7, temperature=0, tools=[CLOCK], reasoning={"effort": "none"}
    )
    assert [(message.role, message.content) for message in draft.messages] == [
        ("system", (TextPart(text="Be brief."),)),
        ("user", (TextPart(text="Hi"),)),
    ]
    assert (draft.sampling.max_tokens, draft.sampling.temperature, draft.sampling.logprobs) == (7, 0, None)
    assert draft.template.tools[0]["function"] == {"name": "clock", "parameters": {"type": "object"}}
    assert draft.template.variables == {"enable_thinking": False}
    assert (draft.store, draft.stream, draft.background) == (True, False, False)
    assert read(include=["message.output_text.logprobs"], top_logprobs=2).sampling.logprobs == 2


def test_items_of_one_turn_become_one_message() -> None:
    draft = read(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Time?"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "c", "name": "clock", "arguments": '{"zone": "UTC"}'},
            {"type": "function_call_output", "call_id": "c", "output": "12:00"},
            {"role": "assistant", "content": "It is noon."},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "detail": "auto"}]},
        ]
    )
    assert [message.role for message in draft.messages] == ["user", "assistant", "tool", "assistant", "user"]
    said = draft.messages[1]
    assert (said.reasoning, said.content) == ("hm", (TextPart(text="Let me see."),))
    assert [(call.name, call.arguments) for call in said.tool_calls] == [("clock", {"zone": "UTC"})]
    assert draft.sources[0].field == "input[6].content[0].image_url"
    assert draft.named("messages[4].content[0]") == "input[6].content[0].image_url"


@pytest.mark.parametrize(
    ("fields", "field"), [({"max_output_tokens": 4096}, "max_output_tokens"), ({"input": "x" * 2_000_000}, "input")]
)
def test_what_is_too_long_is_named_as_it_was_sent(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        read(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input[0].name"),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "{"}]},
            "input[0].arguments",
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1]"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "other"}],
                },
                "tools": [CLOCK],
            },
            "tool_choice.tools[0]",
        ),
        ({"tool_choice": {"type": "function", "name": "other"}, "tools": [CLOCK]}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}}, "text.format"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"guided_json": {}}, "guided_json"),
        ({"logit_bias": {"1000": 1}}, "logit_bias"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**fields)
    assert caught.value.field == field


PIECES = st.sampled_from(["A ", "dog", "\n", "<tool_call>", CALL, "{"])


@given(
    st.lists(st.sampled_from(["hm", "\n"]), max_size=3),
    st.lists(PIECES, max_size=6),
    st.booleans(),
    st.integers(1, 5),
    st.sampled_from(["stop", "length"]),
)
def test_events_add_up_to_the_response(
    reasoning: list[str], texts: list[str], has_tools: bool, num_at_once: int, reason: FinishReason
) -> None:
    tokens = [TokenEntry(token_id=1, reasoning=text) for text in reasoning]
    tokens += [TokenEntry(token_id=1, text=text) for text in texts]
    usage = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=1)
    result = JobResult(text="".join(texts), reasoning="".join(reasoning), finish_reason=reason, usage=usage, model="m")
    template = TemplateOptions(tools=({"type": "function", "function": {"name": "clock"}},) * has_tools)
    messages = (ChatMessage(role="user", content=(TextPart(text="Hi"),)),)
    spec = JobSpec(job_id="j", created_at=1.0, messages=messages, template=template)
    whole = response(spec, JobRecord(job_id="j", status="succeeded", created_at=1.0, result=result), "m")
    events = ResponseEvents("j", has_tools=has_tools, has_logprobs=False)
    said = list(events.begin(whole))
    for start in range(0, len(tokens), num_at_once):
        said += events.take(tokens[start : start + num_at_once])
    said += events.end(whole)
    sent = json.loads(msgspec.json.encode(said))
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    assert [event["item"] for event in sent if event["type"] == "response.output_item.done"] == as_sent(whole)["output"]
    for event in (event for event in sent if event["type"].endswith("text.done")):
        deltas = (each for each in sent if each["type"].endswith("text.delta") and each["item_id"] == event["item_id"])
        assert "".join(each["delta"] for each in deltas) == event["text"]
    assert sent[-1]["type"] == f"response.{whole.status}"
    cut = [item for item in as_sent(whole)["output"] if item["status"] == "incomplete"]
    last = as_sent(whole)["output"][-1:]
    assert cut == (last if reason == "length" and last and last[0]["type"] != "function_call" else [])


def as_sent(answer: Any) -> Any:
    return json.loads(msgspec.json.encode(answer))


async def begun(
    http: aiohttp.ClientSession, conductor: ActingConductor, **fields: Any
) -> tuple[asyncio.Future[aiohttp.ClientResponse], JobSpec, int]:
    asking = asyncio.ensure_future(http.post(URL, json={"model": "m", "input": "Hi"} | fields))
    spec = (await conductor.take()).spec
    return asking, spec, await conductor.begin(spec)


async def sent_events(answer: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


async def test_a_conversation_goes_on_with_its_pictures(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What is it?"}]
    asking, spec, attempt = await begun(
        http, conductor, input=[{"role": "user", "content": content}], instructions="Be brief."
    )
    await conductor.finish(spec, attempt, "A gradient.")
    async with await asking as answer:
        first = await answer.json()
    assert (first["status"], first["output"][0]["content"][0]["text"]) == ("completed", "A gradient.")
    assert first["instructions"] == "Be brief."
    await conductor.media.sweep(0)

    asking, again, attempt = await begun(http, conductor, previous_response_id=first["id"], input="Sure?")
    assert [message.role for message in again.messages] == ["user", "assistant", "user"], "without the instructions"
    image = again.messages[0].content[0]
    assert isinstance(image, ImagePart)
    assert await conductor.media.get(image.media) == jpeg, "although its first job has let go of it"
    assert again.messages[1].content == (TextPart(text="A gradient."),)
    await conductor.finish(again, attempt, "Yes.")
    async with await asking as answer:
        second = await answer.json()
    assert second["previous_response_id"] == first["id"]
    async with http.get(f"{URL}/{first['id']}") as answer:
        assert await answer.json() == first


ASKED: dict[str, Any] = {
    "background": True,
    "max_tool_calls": 3,
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "reasoning": {"effort": "low"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "text": {"format": {"type": "json_schema", "name": "clock", "strict": True, "schema": {"type": "object"}}},
    "tool_choice": "none",
    "tools": [CLOCK | {"description": None}],
    "top_logprobs": 2,
    "truncation": "auto",
    "user": "u",
}


@pytest.mark.parametrize(
    "fields",
    [
        ASKED,
        {name: ASKED[name] for name in ASKED if name not in ("background", "text")}
        | {"tool_choice": {"type": "function", "name": "clock"}, "stream": True},
        {},
    ],
    ids=["background", "stream", "nothing"],
)
async def test_a_response_says_again_what_was_asked(
    http: aiohttp.ClientSession, conductor: ActingConductor, fields: dict[str, Any]
) -> None:
    asking, spec, attempt = await begun(http, conductor, **fields)
    await conductor.finish(spec, attempt, "{}")
    async with await asking as answer:
        if "stream" in fields:
            said = [event["response"] async for event in sent_events(answer) if "response" in event]
            assert len(said) == 3
        else:
            said = [await answer.json()]
    async with http.get(f"{URL}/{said[0]['id']}") as answer:
        said.append(await answer.json())
    for each in said:
        OpenAIResponse.model_validate(each)
        assert each.keys() >= OpenAIResponse.model_fields.keys() - NOT_HERE
        assert {name: each[name] for name in ASKED if name in fields} == {
            name: value for name, value in fields.items() if name in ASKED
        }
    assert said[-1]["completed_at"] >= said[-1]["created_at"]


async def test_a_response_in_the_background(http: aiohttp.ClientSession, conductor: ActingConductor) -> None:
    asking, spec, attempt = await begun(http, conductor, background=True)
    async with await asking as answer:
        queued = await answer.json()
    assert (queued["status"], queued["output"], queued["usage"]) == ("queued", [], None)
    path = f"{URL}/{queued['id']}"
    async with http.get(path) as answer:
        assert (await answer.json())["status"] == "in_progress"
    async with http.post(URL, json={"model": "m", "input": "Hi", "previous_response_id": queued["id"]}) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "previous_response_id")
    async with http.post(f"{path}/cancel") as answer:
        assert answer.status == 200
    assert await conductor.store.cancelled([spec.job_id]) == [spec.job_id]
    await conductor.finish(spec, attempt, Failure("worker_lost", "gone"))
    async with http.get(path) as answer:
        failed = await answer.json()
    assert (failed["status"], failed["error"]) == ("failed", {"code": "server_error", "message": "gone"})


async def test_a_response_that_is_cancelled_is_shown_as_it_ended(
    http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    asking, spec, attempt = await begun(http, conductor, background=True)
    async with await asking as answer:
        name = (await answer.json())["id"]
    cancelling = asyncio.ensure_future(http.post(f"{URL}/{name}/cancel"))

    async def is_asked_to_stop() -> bool:
        return await conductor.store.cancelled([spec.job_id]) == [spec.job_id]

    await eventually(is_asked_to_stop)
    usage = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=1)
    await conductor.finish(spec, attempt, JobResult(text="a", finish_reason="cancelled", usage=usage))
    async with await cancelling as answer:
        assert (await answer.json())["status"] == "cancelled"


async def test_input_items_are_what_was_said_and_asked(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    conversation = [
        {"role": "user", "content": [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "?"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c", "name": "clock", "arguments": '{"zone":"UTC"}'},
        {"type": "function_call_output", "call_id": "c", "output": "12:00"},
        {"role": "user", "content": "So?"},
    ]
    asking, spec, attempt = await begun(http, conductor, input=conversation, instructions="Be brief.", tools=[CLOCK])
    await conductor.finish(spec, attempt, "Noon.")
    async with await asking as answer:
        name = (await answer.json())["id"]
    async with AsyncOpenAI(base_url=f"{running[1]}/v1", api_key="unused", max_retries=0) as client:
        listed = [item async for item in client.responses.input_items.list(name, limit=2, order="asc")]
        newest = await client.responses.input_items.list(name, limit=1)
        with pytest.raises(BadRequestError):
            await client.responses.input_items.list(name, after="in_none")
    items: list[Any] = [item.to_dict() for item in listed]
    kinds = ["message", "reasoning", "message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in items] == kinds
    assert [part["type"] for part in items[0]["content"]] == ["input_image", "input_text"]
    assert (items[2]["role"], items[2]["content"][0]["text"]) == ("assistant", "Let me see.")
    assert items[3]["arguments"] == '{"zone":"UTC"}'
    assert items[3]["call_id"] == items[4]["call_id"]
    assert len({item["id"] for item in items}) == len(items)
    assert (newest.data[0].id, newest.has_more) == (items[-1]["id"], True)


@pytest.mark.parametrize("outcome", ["A gradient.", Failure("compute", "it burst")], ids=["succeeded", "failed"])
async def test_a_response_is_deleted_with_its_pictures(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, outcome: str | Failure
) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    picture = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    asking, spec, attempt = await begun(http, conductor, input=picture, background=True)
    async with await asking as answer:
        path = f"{URL}/{(await answer.json())['id']}"
    async with http.delete(path) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (409, "job_state")
    await conductor.finish(spec, attempt, outcome)
    await conductor.media.sweep(0)
    assert await conductor.media.size_bytes()
    async with http.delete(path) as answer:
        assert await answer.json() == {"id": path.rpartition("/")[2], "object": "response", "deleted": True}
    await conductor.media.sweep(0)
    assert not await conductor.media.size_bytes()
    for ask in (http.get, http.delete):
        async with ask(path) as answer:
            assert answer.status == 404


async def test_a_stream_that_fails_in_its_middle(http: aiohttp.ClientSession, conductor: ActingConductor) -> None:
    asking, spec, attempt = await begun(http, conductor, stream=True)
    await conductor.commit(spec.job_id, attempt, 0, ["a"])
    async with await asking as answer:
        events = sent_events(answer)
        while (await anext(events))["type"] != "response.output_text.delta":
            pass
        await conductor.finish(spec, attempt, Failure("worker_lost", "gone"))
        rest = [event async for event in events]
    assert rest[-1]["type"] == "response.failed"
    assert rest[-1]["response"]["error"] == {"code": "server_error", "message": "gone"}


async def test_what_is_no_response(http: aiohttp.ClientSession, conductor: ActingConductor) -> None:
    async with http.post("/v1/jobs", json={"prompt": "Hi"}) as answer:
        job = await answer.json()
    for name in ("none", "resp_none", f"resp_{job['job_id']}"):
        async with http.get(f"{URL}/{name}") as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (404, "response_id")
        async with http.get(f"{URL}/{name}", params={"stream": "true"}) as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (400, "stream")
        async with http.post(URL, json={"model": "m", "input": "Hi", "previous_response_id": name}) as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (404, "previous_response_id")
