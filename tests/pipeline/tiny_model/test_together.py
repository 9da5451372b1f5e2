"""Jobs alongside each other: none changes what another says, and none takes another down."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture, truncated_jpeg
from tests.kit.running.clusters import DENSE
from tests.kit.running.pipeline_client import PROMPT, PipelineClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="package")]


SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "seed": 17, "max_tokens": 20}


async def test_the_same_seed_gives_the_same_tokens_whatever_else_is_in_flight(client: PipelineClient) -> None:
    [alone] = await client.run([await client.submit(picture(1), **SAMPLED)])
    others = [client.submit(picture(seed), prompt="And this?" * seed, max_tokens=30) for seed in range(2, 9)]
    crowd = await asyncio.gather(*others[:4], client.submit(picture(1), **SAMPLED), *others[4:])
    assert (await client.run(crowd))[4] == alone
    [another] = await client.run([await client.submit(picture(1), **(SAMPLED | {"seed": 18}))])
    assert another != alone


async def test_penalties_reach_the_sampler_through_all_stages(client: PipelineClient) -> None:
    plain, held_back = await client.run(
        [
            await client.submit(picture(1), max_tokens=24, ignore_eos=True),
            await client.submit(
                picture(1), max_tokens=24, ignore_eos=True, frequency_penalty=2.0, presence_penalty=2.0
            ),
        ]
    )
    assert len(plain) == len(held_back) == 24
    assert len(set(held_back)) > len(set(plain))


async def test_a_bad_picture_fails_with_its_reason_and_its_neighbours_finish(client: PipelineClient) -> None:
    good = [client.submit(picture(seed), max_tokens=8) for seed in range(10, 16)]
    *finished, broken = await asyncio.gather(*good, client.submit(truncated_jpeg()))
    [record] = await client.wait([broken])
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "truncated_image"
    assert record.error.field is not None
    expected = [reference_tokens(DENSE, (picture(seed),), PROMPT, 8) for seed in range(10, 16)]
    assert await client.run(finished) == expected


async def test_a_prompt_beyond_the_model_is_refused_and_the_next_job_runs(client: PipelineClient) -> None:
    long = await client.submit(prompt="word " * 5000)
    [record] = await client.wait([long])
    assert record.error is not None
    assert (record.status, record.error.code) == ("failed", "prompt_too_long")
    assert len((await client.run([await client.submit(picture(1), max_tokens=4, ignore_eos=True)]))[0]) == 4


async def test_more_jobs_than_kv_room_all_finish(client: PipelineClient) -> None:
    jobs = [client.submit(picture(seed % 5), max_tokens=150, ignore_eos=True) for seed in range(20)]
    records = await client.wait(await asyncio.gather(*jobs), timeout_s=100)
    assert {record.status for record in records} == {"succeeded"}
    await client.wait_empty()
