"""A Thinking model: its reasoning comes apart from its answer, in results, in events and in lines of captions."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
import pytest_asyncio
import torch
from rich.console import Console

from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.tools.local.cluster import LocalCluster
from export.exporter import ExportOptions, export_checkpoint
from export.source.checkpoint import LocalCheckpoint
from export.synthetic.chat_template import CHAT_TEMPLATE
from export.synthetic.tiny_tokenizer import tiny_tokenizer
from tests.kit.models.tiny_models import tiny_checkpoint
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.drill import run_command
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

KV_TOKENS = 768
TOKENIZER = tiny_tokenizer()
END_ID = TOKENIZER.token_to_id("</think>")
CALL_ID = TOKENIZER.token_to_id("<tool_call>")


def thinking_artifact(directory: Path) -> Path:
    """Return an artifact of random weights whose template opens the reasoning, as those of the Thinking models do."""
    source, artifact = directory / "checkpoint", directory / "artifact"
    shutil.copytree(tiny_checkpoint(tied=False, dtype=torch.float32, expert_layout="runtime"), source)
    template = CHAT_TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n")
    (source / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    export_checkpoint(LocalCheckpoint(source), artifact, ExportOptions(), Console(quiet=True, force_terminal=False))
    return artifact


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    directory = tmp_path_factory.mktemp("thinking")
    settings = tiny_cluster(directory / "run", DENSE, "3").settings
    async with (
        LocalCluster(replace(settings, model=thinking_artifact(directory), kv_tokens=KV_TOKENS)) as cluster,
        client_of(cluster) as opened,
    ):
        yield opened


def divided(token_ids: list[int]) -> tuple[str, str]:
    """Return reasoning and answer of an output, by the tokenizer's own decoding of its two parts.

    A call ends the reasoning as well, and belongs to the answer.
    """
    end = next((index for index, token_id in enumerate(token_ids) if token_id in (END_ID, CALL_ID)), len(token_ids))
    answer_ids = token_ids[end:] if CALL_ID in token_ids[end : end + 1] else token_ids[end + 1 :]
    reasoning, answer = TOKENIZER.decode(token_ids[:end]), TOKENIZER.decode(answer_ids)
    return reasoning.strip("\n"), answer.lstrip("\n")


async def streamed(client: PipelineClient, job_id: str) -> tuple[str, str]:
    """Return reasoning and answer as a client that reads the job's events has them."""
    reasoning, answer = "", ""
    async with (
        aiohttp.ClientSession(client.cluster.gateway_url) as http,
        http.get(f"/v1/jobs/{job_id}/events") as events,
    ):
        async for line in events.content:
            if line.startswith(b"data: "):
                tokens = msgspec.json.decode(line[6:], type=JobEvent).tokens
                reasoning += "".join(token.reasoning for token in tokens)
                answer += "".join(token.text for token in tokens)
    return reasoning, answer


async def test_reasoning_and_answer_come_apart_and_get_the_room_there_is(client: PipelineClient) -> None:
    job_id = await client.submit(picture(1), max_tokens=None, ignore_eos=True, temperature=1.0, seed=5)
    shown = await streamed(client, job_id)
    [record] = await client.wait([job_id])
    assert record.result is not None
    token_ids, usage = await client.tokens(job_id), record.result.usage
    assert END_ID in token_ids, "random weights do not happen to say it: take another seed"
    assert shown == (record.result.reasoning, record.result.text) == divided(token_ids)
    assert all(shown)
    assert usage.num_reasoning_tokens == token_ids.index(END_ID) + 1
    assert usage.num_output_tokens == KV_TOKENS - usage.num_prompt_tokens, "more than without reasoning"


async def test_an_answer_is_held_to_its_grammar_and_the_reasoning_is_not(client: PipelineClient) -> None:
    asked = {"structured_outputs": {"choice": ["cat", "dog"]}, "temperature": 1.0, "logit_bias": {str(END_ID): 3}}
    records = await client.wait(
        [await client.submit(picture(1), max_tokens=400, seed=seed, **asked) for seed in (1, 2)]
    )
    for record in records:
        assert record.result is not None, record.error
        assert (record.result.text in {"cat", "dog"}, record.result.finish_reason) == (True, "stop")
    assert any(record.result.reasoning for record in records if record.result)


async def test_lines_of_captions_have_the_reasoning_apart(client: PipelineClient, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    out = tmp_path / "captions.jsonl"
    code, _, err = await run_command(
        client, "caption", str(tmp_path), "--out", str(out), "--max-tokens", "150", "--no-guards"
    )
    assert code == 0, err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert (line.get("reasoning", ""), line["caption"]) == divided(await client.tokens(line["job_id"]))
    assert any("reasoning" in line for line in lines)


async def test_openais_client_reads_the_reasoning_whole_and_as_a_stream(client: PipelineClient) -> None:
    asked: dict[str, Any] = {"max_tokens": 400, "temperature": 1.0, "seed": 5, "extra_body": {"ignore_eos": True}}
    messages: Any = [{"role": "user", "content": "Hello"}]
    async with openai.AsyncOpenAI(base_url=f"{client.cluster.gateway_url}/v1", api_key="none", max_retries=0) as http:
        model = (await http.models.list()).data[0].id
        said = await http.chat.completions.create(model=model, messages=messages, **asked)
        stream = await http.chat.completions.create(model=model, messages=messages, stream=True, **asked)
        deltas = [choice.delta async for chunk in stream for choice in chunk.choices]
        response = await http.responses.create(
            model=model,
            input="Hello",
            max_output_tokens=400,
            temperature=1.0,
            extra_body={"seed": 5, "ignore_eos": True},
        )
    [message] = [choice.message for choice in said.choices]
    given = {name: (message.model_extra or {})[name] for name in ("reasoning", "reasoning_content")}
    assert given["reasoning"] == given["reasoning_content"]
    for name, reasoning in given.items():
        assert "".join((delta.model_extra or {}).get(name) or "" for delta in deltas) == reasoning
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert given["reasoning"]
    assert message.content, "random weights do not happen to end their reasoning: take another seed"
    assert said.usage is not None
    assert said.usage.completion_tokens_details is not None
    assert (said.usage.completion_tokens_details.reasoning_tokens or 0) > 0
    items = {item.type: item for item in response.output}
    assert [part.text for part in items["reasoning"].content or ()] == [given["reasoning"]]  # type: ignore[union-attr]
    assert response.output_text == message.content
