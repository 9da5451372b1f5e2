"""The trained model that ships with the package, through gateway and three stages."""

from __future__ import annotations

import asyncio
import io
import json

import aiohttp
import jsonschema
import pytest
import torch
from PIL import Image

from broker_pipeline.tools.demo.pictures import DemoPicture, scenes, trained_model
from tests.kit.running.pipeline_client import PipelineClient
from training.evaluate import Captioner
from training.prompts import DEFAULT_PROMPT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="package")]


def transformers_tokens(pictures: list[DemoPicture]) -> list[list[int]]:
    """Return each scene's greedy tokens, generated alone."""
    captioner = Captioner(trained_model(), "cpu", torch.bfloat16)
    images = [Image.open(io.BytesIO(picture.path.read_bytes())).convert("RGB") for picture in pictures]
    with torch.random.fork_rng():
        return [captioner.tokens([image])[0].tolist() for image in images]


async def test_scenes_are_captioned_as_by_transformers_token_for_token(demo: PipelineClient) -> None:
    shown = scenes()
    assert len(shown) == 12
    jobs = [demo.submit(scene.path.read_bytes(), prompt=DEFAULT_PROMPT, max_tokens=48) for scene in shown]
    job_ids = await asyncio.gather(*jobs)
    tokens = await demo.run(job_ids)
    assert tokens == await asyncio.to_thread(transformers_tokens, shown)
    texts = [record.result.text if record.result else None for record in await demo.records(job_ids)]
    assert texts == [scene.expected for scene in shown]


async def test_sampled_captions_depend_on_the_seed_alone(demo: PipelineClient) -> None:
    async def sampled(seed: int) -> str:
        """Without a picture the model cannot be certain of anything."""
        return await demo.submit(prompt=DEFAULT_PROMPT, seed=seed, temperature=2.0, max_tokens=24, ignore_eos=True)

    alone = [(await demo.run([await sampled(seed)]))[0] for seed in range(4)]
    assert len({tuple(tokens) for tokens in alone}) > 1, "the seed decides nothing"
    crowd = [demo.submit(scene.path.read_bytes(), prompt=DEFAULT_PROMPT, max_tokens=48) for scene in scenes()]
    job_ids = await asyncio.gather(*crowd, *(sampled(seed) for seed in range(4)))
    assert (await demo.run(job_ids))[len(crowd) :] == alone


async def test_captions_fulfil_a_schema(demo: PipelineClient) -> None:
    schema = {
        "type": "object",
        "properties": {
            "caption": {"type": "string", "pattern": "^[A-Za-z ,.]{1,120}$"},
            "place": {"enum": ["indoors", "outdoors"]},
        },
        "required": ["caption", "place"],
        "additionalProperties": False,
    }
    asked = {"prompt": DEFAULT_PROMPT, "max_tokens": 400, "structured_outputs": {"json": schema}}
    job_ids = [await demo.submit(scene.path.read_bytes(), **asked, temperature=1.0) for scene in scenes()[:4]]
    for record in await demo.wait(job_ids):
        assert record.result is not None, record.error
        assert record.result.finish_reason == "stop"
        jsonschema.validate(json.loads(record.result.text), schema)


async def test_what_is_no_schema_is_refused_by_its_field(demo: PipelineClient) -> None:
    body = {"prompt": "What?", "sampling": {"structured_outputs": {"json": {"type": "nonsense"}}}}
    async with (
        aiohttp.ClientSession(demo.cluster.gateway_url) as http,
        http.post("/v1/jobs", json=body) as answer,
    ):
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (400, "invalid_request")
        assert error["field"] == "sampling.structured_outputs.json"
