from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from broker_pipeline.errors import CheckpointError
from stages.artifact import Artifact
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import model_shapes
from tests.kit.models.random_checkpoints import write_random_checkpoint

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    artifact = Artifact.open(directory)
    return artifact.load(model_shapes(artifact.config))


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_dense_models_keep_every_bit(tmp_path, run_export, tied, dtype):
    source = write_random_checkpoint(tmp_path / "source", tied=tied, num_layers=3, dtype=dtype)
    exported = run_export(source)
    assert_same_bits(load_all(exported.directory), load_file(source / "model.safetensors"))


@pytest.mark.parametrize(
    ("layout", "recorded", "transposed"),
    [("hub", "hub", True), ("runtime", "runtime", False), ("per_expert", "per-expert", False)],
)
def test_every_expert_layout_gives_the_same_artifact(tmp_path, run_export, layout, recorded, transposed):
    def export(layout):
        source = write_random_checkpoint(
            tmp_path / f"source-{layout}", moe=True, tied=False, num_layers=3, seed=7, expert_layout=layout
        )
        return run_export(source)

    exported, runtime = export(layout), export("runtime") if layout != "runtime" else None
    experts = [record for record in exported.manifest.tensors if ".experts." in record.name]
    assert len(experts) == 6
    assert {(record.source_layout, record.transposed) for record in experts} == {(recorded, transposed)}
    reference = write_random_checkpoint(
        tmp_path / "reference", moe=True, tied=False, num_layers=3, seed=7, expert_layout="runtime"
    )
    assert_same_bits(load_all(exported.directory), load_file(reference / "model.safetensors"))
    if runtime is not None:  # the same content, wherever it came from
        assert runtime.manifest.fingerprint == exported.manifest.fingerprint


@pytest.mark.parametrize("moe", [False, True])
def test_what_transformers_saves_can_be_exported(tmp_path, run_export, moe):
    source = write_random_checkpoint(tmp_path / "source", moe=moe, tied=not moe, num_layers=3)
    model_class = Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration
    model = model_class.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved", max_shard_size="500KB")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "saved")
    Qwen2VLImageProcessorPil.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
    exported = run_export(tmp_path / "saved")
    expected = {name: tensor for name, tensor in model.state_dict().items() if moe or name != HEAD}
    assert_same_bits(load_all(exported.directory), expected)
    assert AutoConfig.from_pretrained(tmp_path / "saved").text_config.num_hidden_layers == 3


def test_files_are_per_block_and_loadable_by_the_library(run_export, write_checkpoint, moe_config, moe_weights):
    exported = run_export(write_checkpoint(moe_config, moe_weights, num_shards=3))
    files = {path.name for path in exported.directory.glob("*.safetensors")}
    assert files == {
        "embed.safetensors",
        "head.safetensors",
        "vision.safetensors",
        "block-00000.safetensors",
        "block-00001.safetensors",
        "block-00002.safetensors",
    }
    block = load_file(exported.directory / "block-00001.safetensors")
    assert all(name.startswith("model.language_model.layers.1.") for name in block)
    assert len(block) == 11
    assert set(load_file(exported.directory / "head.safetensors")) == {HEAD, "model.language_model.norm.weight"}


def test_configuration_and_side_files_are_copied_byte_for_byte(tmp_path, run_export):
    source = write_random_checkpoint(tmp_path / "source", num_layers=3)
    (source / "README.md").write_text("not part of an artifact")
    exported = run_export(source)
    assert (exported.directory / "hf_config.json").read_bytes() == (source / "config.json").read_bytes()
    side_files = {file.name for file in exported.manifest.side_files}
    assert side_files == {
        path.name for path in source.iterdir() if path.name not in {"config.json", "model.safetensors", "README.md"}
    }
    for name in side_files:
        assert (exported.directory / name).read_bytes() == (source / name).read_bytes()


def test_tied_head_is_an_alias_of_the_embedding(run_export, write_checkpoint, dense_config, dense_weights):
    exported = run_export(write_checkpoint(dense_config, dense_weights))
    record = exported.manifest.by_name()[HEAD]
    assert (record.tied_to, record.file) == (EMBED, "embed.safetensors")
    loaded = Artifact.open(exported.directory).load([HEAD, EMBED])
    assert loaded[HEAD].data_ptr() == loaded[EMBED].data_ptr()
    assert torch.equal(loaded[HEAD], dense_weights[EMBED])


def test_tied_head_stored_twice_is_accepted_if_equal(run_export, write_checkpoint, dense_config, dense_weights):
    weights = dense_weights | {HEAD: dense_weights[EMBED].clone()}
    exported = run_export(write_checkpoint(dense_config, weights))
    assert exported.manifest.by_name()[HEAD].tied_to == EMBED


def test_tied_head_that_differs_is_refused(run_export, write_checkpoint, dense_config, dense_weights):
    weights = dense_weights | {HEAD: dense_weights[EMBED] + 1}
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        run_export(write_checkpoint(dense_config, weights))


def test_dtype_converts_every_tensor(run_export, write_checkpoint, moe_config, moe_weights):
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in moe_weights.items()}
    exported = run_export(write_checkpoint(moe_config, mixed), dtype="float32")
    assert_same_bits(load_all(exported.directory), {name: tensor.float() for name, tensor in moe_weights.items()})
    assert Artifact.open(exported.directory).config.dtype == "float32"


@pytest.mark.parametrize("num_workers", [1, 4])
def test_packed_holds_the_same_tensors(run_export, write_checkpoint, dense_config, dense_weights, num_workers):
    exported = run_export(write_checkpoint(dense_config, dense_weights), packed=True, num_workers=num_workers)
    packed = torch.load(exported.directory / "weights.pt", weights_only=True)
    assert_same_bits(packed, dense_weights | {HEAD: dense_weights[EMBED]})
    assert packed[HEAD].data_ptr() == packed[EMBED].data_ptr()
    size_bytes = (exported.directory / "weights.pt").stat().st_size
    assert size_bytes < 1.2 * sum(tensor.nbytes for tensor in dense_weights.values()) + 200_000


def test_packed_changes_no_fingerprint_and_can_be_added_later(
    run_export, write_checkpoint, dense_config, dense_weights
):
    source = write_checkpoint(dense_config, dense_weights)
    plain = run_export(source)
    assert not (plain.directory / "weights.pt").exists()
    again = run_export(source, packed=True)
    assert again.was_there
    assert again.manifest.fingerprint == plain.manifest.fingerprint
    assert_same_bits(
        torch.load(plain.directory / "weights.pt", weights_only=True), dense_weights | {HEAD: dense_weights[EMBED]}
    )


def test_artifact_computes_what_the_checkpoint_does(tmp_path, run_export):
    """A runtime-layout export of hub-layout files, seen by transformers: the turn of the experts is the right one."""
    source = write_random_checkpoint(tmp_path / "source", moe=True, tied=False, num_layers=3)
    exported = run_export(source)
    resaved = tmp_path / "resaved"
    resaved.mkdir()
    (resaved / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(load_all(exported.directory), resaved / "model.safetensors", metadata={"format": "pt"})
    token_ids = torch.arange(5, 25)[None]
    of_source, of_artifact = (
        Qwen3VLMoeForConditionalGeneration.from_pretrained(path, dtype=torch.float32) for path in (source, resaved)
    )
    assert_same_bits(of_source.state_dict(), of_artifact.state_dict())
    with torch.no_grad():
        logits, again = of_source(token_ids).logits, of_artifact(token_ids).logits
    # Not to the bit: how a product is summed up may depend on where a file's map puts its operands.
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-5)
    assert ModelConfig.from_json((resaved / "config.json").read_bytes()).text.is_moe
