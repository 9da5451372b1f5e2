from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.tools.local.cuts import balanced_cut
from export.synthetic.shapes import shape_config
from stages.artifact import Artifact
from stages.qwen3_vl.tensors import EMBED_TOKENS, LM_HEAD, layer_shapes, model_shapes, stage_shapes, vision_shapes
from stages.random_weights import draw_weights, tensor_seed
from trials.bench.shape_artifact import write_shape_artifact

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(write_shape_artifact(tmp_path_factory.mktemp("tiny"), "tiny"))


@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 6), (0, 2, 3, 6)])
def test_any_cut_draws_the_same_weights(tiny: Artifact, cuts: tuple[int, ...]) -> None:
    expected = tiny.load(model_shapes(tiny.config))
    for start, stop in pairwise(cuts):
        names = stage_shapes(tiny.config, start, stop)
        tensors = tiny.load(reversed(names))
        assert {name: tensor.shape for name, tensor in tensors.items()} == names
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    pictures = tiny.load(vision_shapes(tiny.config))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pictures.items())


def test_tensors_differ_from_each_other_and_between_seeds(tmp_path: Path) -> None:
    loaded = [Artifact.open(write_shape_artifact(tmp_path / str(s), "tiny", 2, seed=s)) for s in (0, 1)]
    assert loaded[0].fingerprint != loaded[1].fingerprint
    first, second = (artifact.load(layer_shapes(artifact.config, 0)) for artifact in loaded)
    matrices = [name for name, tensor in first.items() if tensor.dim() == 2]
    assert all(not torch.equal(first[name], second[name]) for name in matrices)
    assert not torch.equal(first[matrices[1]], first[matrices[2]])


def test_a_tied_head_is_the_embedding(tiny: Artifact) -> None:
    tensors = tiny.load([EMBED_TOKENS, LM_HEAD])
    assert tensors[EMBED_TOKENS].data_ptr() == tensors[LM_HEAD].data_ptr()


def test_another_dtype_is_the_same_model(tmp_path: Path) -> None:
    artifact = Artifact.open(write_shape_artifact(tmp_path, "demo", 1))
    assert artifact.dtype == torch.bfloat16
    as_stored = artifact.load([EMBED_TOKENS])[EMBED_TOKENS]
    assert torch.equal(artifact.load([EMBED_TOKENS], dtype=torch.float32)[EMBED_TOKENS], as_stored.float())


@pytest.mark.parametrize("shape", [(1200, 1024), (3, 700, 600)])
def test_large_matrices_keep_their_scale_and_have_no_equal_rows(shape: tuple[int, ...]) -> None:
    name = "model.language_model.layers.0.mlp.experts.down_proj" if len(shape) == 3 else "matrix.weight"
    tensor = draw_weights({name: shape}, CPU, torch.float32)[name]
    deviation = tensor.std(dim=-1) * shape[-1] ** 0.5
    assert deviation.min() > 0.85
    assert deviation.max() < 1.15
    rows = tensor.reshape(-1, shape[-1])
    assert rows.unique(dim=0).shape == rows.shape
    assert torch.linalg.matrix_rank(rows[:512].double()) == 512


@pytest.mark.parametrize(("shape", "num_stages"), [("8B", 2), ("30B-A3B", 3)])
def test_an_artifact_of_any_size_is_small_and_can_be_cut(tmp_path: Path, shape: str, num_stages: int) -> None:
    directory = write_shape_artifact(tmp_path, shape)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 8e6
    manifest = read_manifest(directory)
    assert {record.name: record.shape for record in manifest.tensors} == model_shapes(shape_config(shape))
    sizes = [blocks.stop - blocks.start for blocks in balanced_cut(directory, num_stages)]
    assert max(sizes) - min(sizes) <= 2


def test_seeds_depend_on_the_name_and_are_what_they_were() -> None:
    """Whoever changes these changes every figure that was measured with them."""
    assert tensor_seed(0, EMBED_TOKENS) == tensor_seed(0, EMBED_TOKENS) != tensor_seed(1, EMBED_TOKENS)
    assert tensor_seed(0, "a") != tensor_seed(0, "b")
    assert 0 <= tensor_seed(0, "a") < 2**63
