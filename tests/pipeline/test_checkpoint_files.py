"""A checkpoint as other programs leave it, through export, gateway and stages: its captions are the model's own."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.pictures import scenes, trained_model
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import parse_cut
from broker_pipeline.tools.local.plan import LocalSettings
from tests.kit.running.pipeline_client import client_of
from training.prompts import DEFAULT_PROMPT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PROCESSORS = {
    "image_processor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}


def saved_otherwise(directory: Path) -> Path:
    """Copy the demo's model: no tokenizer.json, one file for both processors, and weights in a shard without index."""
    source = Path(shutil.copytree(trained_model(), directory / "source"))
    nested = {section: json.loads((source / name).read_text()) for section, name in PROCESSORS.items()}
    (source / "processor_config.json").write_text(json.dumps(nested))
    (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    for name in ("tokenizer.json", *PROCESSORS.values()):
        (source / name).unlink()
    return source


async def test_captions_do_not_depend_on_which_files_say_the_same(tmp_path: Path) -> None:
    artifact = await make_artifact(tmp_path, saved_otherwise(tmp_path))
    settings = LocalSettings(model=artifact, stages=parse_cut("2", 5), data_dir=tmp_path / "run", drain_s=2.0)
    shown = scenes()[:4]
    async with LocalCluster(settings) as cluster, client_of(cluster) as client:
        jobs = [client.submit(scene.path.read_bytes(), prompt=DEFAULT_PROMPT, max_tokens=48) for scene in shown]
        job_ids = await asyncio.gather(*jobs)
        await client.run(job_ids)
        texts = [record.result.text if record.result else None for record in await client.records(job_ids)]
    assert texts == [scene.expected for scene in shown]
