from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError, CheckpointError
from broker_pipeline.model_facts import read_model_facts, read_most_picture_pixels
from export.exporter import ExportOptions, export_checkpoint
from export.source.checkpoint import LocalCheckpoint
from stages.artifact import Artifact
from tests.kit.models.random_checkpoints import write_random_checkpoint


def export(source: Path, target: Path) -> Path:
    return export_checkpoint(LocalCheckpoint(source), target, ExportOptions(), Console(quiet=True)).directory


@pytest.fixture
def source(tmp_path) -> Path:
    return write_random_checkpoint(tmp_path / "source", moe=True, tied=False, num_layers=4, dtype=torch.bfloat16)


def test_facts_are_the_models(source, tmp_path):
    directory = export(source, tmp_path / "artifact")
    facts, artifact = read_model_facts(directory), Artifact.open(directory)
    config = artifact.config
    assert facts.fingerprint == artifact.fingerprint
    assert facts.name == "artifact", "its directory's, where no repository is known"
    assert (facts.model_type, facts.dtype) == ("qwen3_vl_moe", "bfloat16")
    assert facts.num_layers == config.text.num_layers == 4
    assert facts.hidden_size == config.text.hidden_size
    assert (facts.num_kv_heads, facts.head_dim) == (config.text.num_kv_heads, config.text.head_dim)
    assert facts.num_deepstack_levels == config.vision.num_deepstack_levels == 3
    assert facts.vocab_size == config.text.vocab_size
    assert facts.max_position_embeddings == config.text.max_position_embeddings
    assert (facts.image_token_id, facts.video_token_id) == (config.image_token_id, config.video_token_id)
    generation = json.loads((source / "generation_config.json").read_text())
    assert facts.eos_token_ids == tuple(generation["eos_token_id"])
    assert facts.generation.temperature == generation["temperature"] == 0.7
    assert facts.generation.top_k == 20
    assert facts.generation.min_p is None


def test_without_a_generation_config_the_model_config_ends_sequences(source, tmp_path):
    (source / "generation_config.json").unlink()
    directory = export(source, tmp_path / "artifact")
    facts = read_model_facts(directory)
    assert facts.eos_token_ids == Artifact.open(directory).config.eos_token_ids
    assert len(facts.eos_token_ids) == 1
    assert facts.generation.do_sample is None


@pytest.mark.parametrize(
    ("name", "said", "pixels"),
    [
        ("preprocessor_config.json", {"size": {"longest_edge": 2**21, "shortest_edge": 4096}}, 2**21),
        ("preprocessor_config.json", {"max_pixels": 2**22, "size": None}, 2**22),
        ("processor_config.json", {"image_processor": {"size": {"longest_edge": 2**20}}}, 2**20),
        ("preprocessor_config.json", None, 2**24),
    ],
)
def test_the_largest_picture_is_read_where_a_file_says_it(source, tmp_path, name, said, pixels):
    directory = export(source, tmp_path / "artifact")
    (directory / "preprocessor_config.json").unlink()
    if said is not None:
        (directory / name).write_text(json.dumps(said))
    assert read_most_picture_pixels(directory) == pixels


def test_no_weights_are_needed(source, tmp_path):
    directory = export(source, tmp_path / "artifact")
    for path in directory.glob("*.safetensors"):
        path.unlink()
    assert read_model_facts(directory).num_layers == 4


def test_no_torch_is_imported():
    code = "import sys, broker_pipeline.model_facts; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_artifact_is_refused(tmp_path, source):
    with pytest.raises(ArtifactMissingError):
        read_model_facts(source)


def test_another_models_configuration_is_refused(tmp_path, source):
    directory = export(source, tmp_path / "artifact")
    other = write_random_checkpoint(tmp_path / "other", num_layers=3)
    shutil.copy(other / "config.json", directory / "hf_config.json")
    with pytest.raises(ArtifactCorruptError, match="was altered"):
        read_model_facts(directory)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.8), (1.0, 0.95)], ids=["instruct", "thinking"])
def test_the_hubs_generation_configs_are_read(tmp_path, source, temperature, top_p):
    values = {
        "bos_token_id": 352,
        "pad_token_id": 352,
        "do_sample": True,
        "eos_token_id": [354, 352],  # the tiny tokenizer's
        "top_p": top_p,
        "top_k": 20,
        "temperature": temperature,
        "repetition_penalty": 1.0,
        "transformers_version": "4.56.0",
    }
    (source / "generation_config.json").write_text(json.dumps(values))
    facts = read_model_facts(export(source, tmp_path / "artifact"))
    assert facts.eos_token_ids == (354, 352)
    assert (facts.generation.temperature, facts.generation.top_p) == (temperature, top_p)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 9.0}, {"no_repeat_ngram_size": -1}, {"presence_penalty": 3}], ids=str
)
def test_recommendations_that_no_stage_takes_are_refused(source, tmp_path, wrong):
    directory = export(source, tmp_path / "artifact")
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(ArtifactCorruptError, match=next(iter(wrong))):
        read_model_facts(directory)


def test_the_models_own_output_limit_is_the_default_unless_another_is_stated(tmp_path, source):
    def limit(default_max_tokens: int | None = None) -> int:
        return TextModel.open(artifact, default_max_tokens).limits(None, 10_000).max_tokens(10)

    generation = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").write_text(json.dumps(generation | {"max_new_tokens": 77}))
    artifact = export(source, tmp_path / "artifact")
    assert (limit(), limit(5)) == (77, 5)
    (source / "generation_config.json").write_text(json.dumps(generation | {"max_new_tokens": 0}))
    with pytest.raises(CheckpointError, match=r"generation_config.json: .*max_new_tokens"):
        export(source, tmp_path / "wrong")


@pytest.mark.parametrize("room", [0, 1, 10**9])
def test_limits_can_be_shown_whatever_room_there_is(tmp_path, source, room):
    model = TextModel.open(export(source, tmp_path / "artifact"))
    most = model.facts.max_position_embeddings
    assert model.shown_limits(room).max_tokens_in_all == (2 if room == 1 else most)
