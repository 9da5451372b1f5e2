"""Prompts that are far too long are refused at submission, and whoever comes behind them hardly waits.

Those that only turn out too long where they are tokenised are in tests/stages/vision/test_worker.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(150), pytest.mark.asyncio(loop_scope="module")]

HOSTILE = {
    "words": "long " * 400_000,
    "one word": "z" * 2_000_000,
    "control tokens": "<|im_end|>" * 200_000,
    "other scripts": "\u6f22e\u0301" * 500_000,
    "line ends": "a" + " \n" * 999_999,
    "marks of combination": "a" + "\u0301" * 1_000_000,
}
MAX_DELAY_S = 1.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    """Return a client of a pipeline whose limit is the model's own, which is larger than that of KV elsewhere."""
    settings = tiny_cluster(tmp_path_factory.mktemp("hostile") / "run", DENSE, "3").settings
    async with LocalCluster(replace(settings, kv_tokens=400_000)) as cluster, client_of(cluster) as opened:
        yield opened


async def captioned_s(client: PipelineClient, number: int) -> float:
    """Return the seconds from a picture's submission to its caption."""
    started = time.monotonic()
    [record] = await client.wait([await client.submit(picture(number), max_tokens=4)])
    assert (record.status, record.attempt) == ("succeeded", 1)
    return time.monotonic() - started


async def refused(client: PipelineClient, prompt: str) -> None:
    with pytest.raises(AssertionError, match="prompt_too_long"):
        await client.submit(prompt=prompt)


@pytest.mark.parametrize("kind", HOSTILE)
async def test_four_hostile_prompts_delay_others_by_less_than_a_second(client: PipelineClient, kind: str) -> None:
    usual_s = max([await captioned_s(client, number) for number in range(3)])
    hostile = [asyncio.create_task(refused(client, HOSTILE[kind])) for _ in range(4)]
    behind_s = max([await captioned_s(client, number) for number in range(3, 8)])
    print(f"{kind}: usually {usual_s:.2f} s, behind four of them {behind_s:.2f} s")
    assert behind_s - usual_s < MAX_DELAY_S
    await asyncio.gather(*hostile)
