"""Every sampling field of a request reaches the stage, or the conductor, that obeys it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker_pipeline.conductor.output.detokenizer import Vocabulary
from export.synthetic.tiny_tokenizer import tiny_tokenizer
from tests.kit.pictures import picture, truncated_jpeg
from tests.kit.running.pipeline_client import PipelineClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="package")]

NUM_TOKENS = 12


async def said(client: PipelineClient, **sampling: Any) -> tuple[list[int], str | None]:
    """Return the tokens of a greedy job without pictures, and why it ended."""
    job_id = await client.submit(prompt="Say it.", **({"max_tokens": NUM_TOKENS, "ignore_eos": True} | sampling))
    [record] = await client.wait([job_id])
    assert record.result is not None, record.error
    return await client.tokens(job_id), record.result.finish_reason


async def test_stop_tokens_end_an_output_that_is_long_enough(client: PipelineClient) -> None:
    plain, reason = await said(client)
    assert (len(plain), reason) == (NUM_TOKENS, "length")
    stop = plain[3]
    assert await said(client, stop_token_ids=[stop]) == (plain[: plain.index(stop) + 1], "stop")
    longer, _ = await said(client, stop_token_ids=[stop], min_tokens=NUM_TOKENS - 1)
    assert len(longer) == NUM_TOKENS
    assert stop not in longer[:-1]


async def test_a_bias_draws_tokens_and_keeps_them_away(client: PipelineClient) -> None:
    plain, _ = await said(client)
    without, _ = await said(client, logit_bias={str(token_id): -100 for token_id in set(plain)})
    assert not set(without) & set(plain)
    assert (await said(client, logit_bias={"65": 100}))[0] == [65] * NUM_TOKENS


async def test_no_ngram_comes_twice(client: PipelineClient) -> None:
    tokens, _ = await said(client, logit_bias={"65": 20, "66": 10}, no_repeat_ngram_size=2)
    pairs = list(itertools.pairwise(tokens))
    assert len(set(pairs)) == len(pairs)


async def test_endless_repetition_ends_with_a_reason_of_its_own(client: PipelineClient) -> None:
    looping = {"logit_bias": {"65": 100}, "max_tokens": 100}
    tokens, reason = await said(client, **looping, repetition_detection={"max_pattern_size": 3, "min_count": 7})
    assert (tokens, reason) == ([65] * 7, "repetition")


async def test_a_bad_word_is_not_said(client: PipelineClient) -> None:
    word = Vocabulary(tiny_tokenizer()).text(65)
    tokens, _ = await said(client, logit_bias={"65": 100, "66": 50}, bad_words=[word])
    assert tokens == [66] * NUM_TOKENS


async def test_several_outputs_are_those_of_several_jobs(client: PipelineClient) -> None:
    asked = {"temperature": 1.5, "max_tokens": NUM_TOKENS, "logprobs": 1, "min_tokens": 3}
    together = await client.submit(picture(1), n=3, seed=2**63 - 2, **asked)
    alone = [await client.submit(picture(1), seed=seed, **asked) for seed in (2**63 - 2, 2**63 - 1, -(2**63))]
    [record, *records] = await client.wait([together, *alone])
    tokens = [await client.tokens(job_id) for job_id in alone]
    assert len({tuple(each) for each in tokens}) == 3
    assert await client.tokens(together) == list(itertools.chain(*tokens))
    assert record.result is not None
    results = [each.result for each in records if each.result is not None]
    assert [(each.text, each.finish_reason) for each in record.result.choices] == [
        (each.text, each.finish_reason) for each in results
    ]
    assert record.result.text == results[0].text


async def test_a_request_that_rules_out_every_token_fails_by_its_reason(client: PipelineClient) -> None:
    size = {"no_repeat_ngram_size": 1, "max_tokens": 2000, "ignore_eos": True}
    [record] = await client.wait([await client.submit(prompt="Say it.", **size)])
    assert record.error is not None
    assert record.error.code == "nothing_left"


async def test_structured_outputs_end_when_they_are_complete_or_cut(client: PipelineClient) -> None:
    asked = {"ignore_eos": False, "structured_outputs": {"choice": ["cat", "dog"]}}
    rivals = {"logit_bias": {"65": 100}, "min_tokens": 9, "bad_words": ["cat", "dog"], "no_repeat_ngram_size": 1}
    both = [await client.submit(prompt="Say it.", n=2, logprobs=1, **asked), await client.submit(**asked, **rivals)]
    for record in await client.wait(both):
        assert record.result is not None, record.error
        for choice in record.result.choices or [record.result]:
            assert (choice.text in {"cat", "dog"}, choice.finish_reason) == (True, "stop")
    pattern = {"regex": "[a-e]{40}"}
    tokens, reason = await said(client, ignore_eos=False, structured_outputs=pattern)
    assert (len(tokens), reason) == (NUM_TOKENS, "length")
    _, reason = await said(client, ignore_eos=False, structured_outputs=pattern, stop=["a", "b", "c", "d", "e"])
    assert reason == "stop"


async def test_a_grammar_that_is_too_much_work_fails_its_job_and_no_other(client: PipelineClient) -> None:
    """Submission cannot know: it is a matter of what the model says."""
    grammar = {"grammar": "start: " + "x? " * 800 + '\nx: "a" | "b"'}
    broken, whole = [
        await client.submit(prompt="Say it.", structured_outputs=each, logit_bias={"65": 50})
        for each in (grammar, {"choice": ["cat"]})
    ]
    failed, succeeded = await client.wait([broken, whole])
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("grammar", False)
    assert succeeded.result is not None
    assert succeeded.result.text == "cat"


async def test_failures_of_a_job_name_what_its_sender_wrote(client: PipelineClient) -> None:
    broken = "data:;base64," + base64.b64encode(truncated_jpeg()).decode()
    bodies: dict[str, Any] = {
        "prompt": {"prompt": "word " * 5000},
        "images[0]": {"images": [broken], "prompt": "What?"},
    }
    async with aiohttp.ClientSession() as http:
        for field, body in bodies.items():
            async with http.post(f"{client.cluster.gateway_url}/v1/jobs", json=body) as answer:
                job_id = (await answer.json())["job_id"]
            [record] = await client.wait([job_id])
            assert record.error is not None
            assert record.error.field == field, record.error


async def test_caption_passes_everything_on(client: PipelineClient, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    flags = ["--n", "2", "--logit-bias", '{"65": 100, "66": 50}', "--bad-words", "b", "--stop-token-ids", "67"]
    flags += ["--temperature", "0", "--no-repeat-ngram-size", "0", "--max-tokens", "3", "--min-tokens", "1"]
    flags += [
        "--no-guards",
        "--repetition-detection",
        '{"max_pattern_size": 1, "min_count": 2}',
        "--stop",
        "x",
        "--stop",
        "y",
    ]
    command = [sys.executable, "-m", "broker_pipeline", "caption", "a.png", "--gateway", client.cluster.gateway_url]
    process = await asyncio.create_subprocess_exec(*command, *flags, cwd=tmp_path)
    assert await process.wait() == 0
    line = json.loads((tmp_path / "captions.jsonl").read_text())
    assert (line["caption"], line["finish_reason"]) == ("cc", "repetition")
    assert line["choices"] == [{"text": "cc", "finish_reason": "repetition", "num_output_tokens": 2}] * 2


async def test_a_token_that_the_model_does_not_have_fails_by_its_field(client: PipelineClient) -> None:
    with pytest.raises(AssertionError, match=r"'invalid_request'.*'sampling.stop_token_ids'"):
        await client.submit(stop_token_ids=[1_000_000])
