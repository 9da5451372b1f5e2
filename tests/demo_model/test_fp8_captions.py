"""What FP8 costs the demo's model: captions of unseen scenes, beside those of the same weights in bfloat16.

FP8_SCENES=2000 pytest -s tests/demo_model/test_fp8_captions.py      more scenes than a test takes
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.demo.pictures import trained_model
from export.exporter import ExportOptions, export_checkpoint
from export.source.checkpoint import LocalCheckpoint
from stages.artifact import Artifact
from stages.cached_heads import KVDtype
from stages.compute.generate import Request, WholeModel
from stages.compute.loading import load_stage, load_vision, stage_tensor_names, vision_tensor_names
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.prompt.tokenizer import TOKENIZER_FILE, load_tokenizer
from training.evaluate import unseen_scenes
from training.prompts import DEFAULT_PROMPT
from trials.prompts import Prompts

NUM_SCENES = int(os.environ.get("FP8_SCENES", "200"))
SEED = 2026


def exported(directory: Path, **options) -> Artifact:
    export_checkpoint(LocalCheckpoint(trained_model()), directory, ExportOptions(**options), Console(quiet=True))
    return Artifact.open(directory)


def stage_of(artifact: Artifact, device: str, kv_dtype: KVDtype = "auto") -> StageCompute:
    blocks = BlockRange(start=0, stop=artifact.config.text.num_layers)
    options = ComputeOptions(device=device, kv_dtype=kv_dtype, max_batch_tokens=512, max_step_sessions=128)
    with artifact.reading(stage_tensor_names(artifact.config, 0, blocks.stop), device) as tensors:
        return load_stage(artifact.config, blocks, tensors, kv_capacity_tokens=20_000, options=options)


def requests_of(
    artifact: Artifact, directory: Path, options: ComputeOptions | None = None
) -> Iterator[tuple[list[Request], list[str]]]:
    """Yield scenes with their visual rows, a hundred at a time, and their true captions."""
    prompts, config = Prompts(artifact), artifact.config
    tower = load_vision(config, artifact.load(vision_tensor_names(config)), options)
    path = directory / "scene.png"
    for pictures, captions in unseen_scenes(NUM_SCENES, SEED, batch=100):
        requests = []
        for number, picture in enumerate(pictures):
            picture.save(path)
            patches = prompts.patches(path)
            prompt = prompts.build(DEFAULT_PROMPT, [patches])
            rows = tower.encode(patches.rows, [patches.grid])
            requests.append(
                Request(
                    f"s{number}",
                    prompt.token_ids,
                    prompt.groups,
                    rows,
                    max_tokens=40,
                    eos_token_ids=config.eos_token_ids,
                )
            )
        yield requests, captions


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@torch.inference_mode()
def test_captions_are_those_of_bfloat16(tmp_path, record_property, device: str) -> None:
    plain, quantized = exported(tmp_path / "plain"), exported(tmp_path / "fp8", quantize="fp8")
    stages = [stage_of(plain, device), stage_of(quantized, device), stage_of(plain, device, "fp8")]
    models = [WholeModel([stage]) for stage in stages]
    tokenizer = load_tokenizer(plain.path(TOKENIZER_FILE))
    num_equal, num_right = [0, 0], [0, 0, 0]
    for requests, captions in requests_of(plain, tmp_path):
        said = [
            tokenizer.decode_batch([[token.token_id for token in tokens] for tokens in model.generate(requests)])
            for model in models
        ]
        for index, others in enumerate(said[1:]):
            num_equal[index] += sum(one == other for one, other in zip(said[0], others, strict=True))
        for index, own in enumerate(said):
            num_right[index] += sum(one == truth for one, truth in zip(own, captions, strict=True))
    record_property("num_equal", num_equal)
    print(f"{NUM_SCENES} scenes; with weights or KV in FP8 {num_equal} captions equal; right {num_right}")
    assert num_right[0] >= 0.9 * NUM_SCENES
    assert min(num_equal) >= 0.99 * NUM_SCENES


@pytest.mark.slow
@pytest.mark.timeout(900)
@torch.inference_mode()
def test_captions_with_the_tower_in_fp8_are_those_of_bfloat16(tmp_path) -> None:
    plain = exported(tmp_path / "plain")
    model, num_equal = WholeModel([stage_of(plain, "cpu")]), 0
    in_fp8 = requests_of(plain, tmp_path, ComputeOptions(fp8_tower=True))
    for (requests, _), (others, _) in zip(requests_of(plain, tmp_path), in_fp8, strict=True):
        said = [
            [[token.token_id for token in tokens] for tokens in model.generate(each)] for each in (requests, others)
        ]
        num_equal += sum(one == other for one, other in zip(*said, strict=True))
    print(f"{NUM_SCENES} scenes: {num_equal} captions equal")
    assert num_equal >= 0.99 * NUM_SCENES
