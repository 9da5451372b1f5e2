"""What the planner knows of artifacts in FP8."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.model_facts import read_model_facts
from broker_pipeline.planning.devices import Device, gpu
from broker_pipeline.planning.forecast import forecast
from broker_pipeline.planning.layout import Layout, LayoutRequest, VisionPlace, chain_of
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.planner import choose_plan
from broker_pipeline.planning.site import Site
from broker_pipeline.planning.workload import Workload
from broker_pipeline.tools.local.layouts import read_sizes
from tests.kit.models.planned_sizes import sizes_of
from trials.bench.shape_artifact import write_shape_artifact

H100, H200 = gpu("NVIDIA H100 80GB HBM3", 85 * 10**9), gpu("NVIDIA H200", 150 * 10**9)


@pytest.mark.parametrize("shape", ["8B", "30B-A3B", "235B-A22B"])
def test_layers_take_half_the_bytes_on_a_gpu_in_bfloat16_only(tmp_path, shape: str) -> None:
    directory = write_shape_artifact(tmp_path / shape, shape, in_fp8=True)
    quantized, plain = read_sizes(directory), sizes_of(shape)
    assert quantized.layer_bytes / plain.layer_bytes == pytest.approx(0.5, abs=0.002)
    assert quantized.layer_weights == plain.layer_weights
    assert (quantized.num_experts, quantized.expert_weights) == (plain.num_experts, plain.expert_weights)
    assert quantized.tower_bytes == plain.tower_bytes
    assert read_sizes(directory, on_gpus=False).layer_bytes == plain.layer_bytes
    assert read_sizes(directory, "float32").layer_bytes == 2 * plain.layer_bytes


def test_235b_fits_four_gpus_of_80_gb(tmp_path) -> None:
    directory = write_shape_artifact(tmp_path / "artifact", "235B-A22B", in_fp8=True)
    sizes = ModelSizes.of(read_manifest(directory), read_model_facts(directory))
    four = Site(devices=(H100,) * 4, num_cores=64)
    plan = choose_plan(sizes, four, Workload(), LayoutRequest())
    [chain] = plan.layout.chains
    assert len(chain) == 4


@pytest.mark.parametrize(
    ("shape", "device", "counts", "vision", "kv_in_fp8", "round_", "rates"),
    [
        ("8B", H100, [36], "shared", False, (512, 2048), (101.7, 97)),
        ("8B", H200, [36], "shared", False, (512, 2048), (121.9, 119)),
        ("8B", H200, [36], "beside", False, (768, 3072), (114.9, 119)),
        ("30B-A3B", H200, [48], "beside", False, (768, 3072), (128.5, 131)),
        ("30B-A3B", H200, [48], "shared", False, (512, 2048), (105.8, 131)),
        ("235B-A22B", H200, [49, 45], "beside", False, (512, 2048), (60.8, 55)),
        ("235B-A22B", H200, [49, 45], "beside", True, (960, 2880), (69.2, 57)),
    ],
)
def test_whole_systems(
    tmp_path,
    shape: str,
    device: Device,
    counts: Sequence[int],
    vision: VisionPlace,
    kv_in_fp8: bool,
    round_: tuple[int, int],
    rates: tuple[float, float],
) -> None:
    """Rounds of docs/benchmarks.md, of so many sessions and captions; the gains were fitted to most of them."""
    (num_sessions, num_captions), (measured, predicted) = round_, rates
    sizes = read_sizes(write_shape_artifact(tmp_path / "artifact", shape, in_fp8=True), kv_in_fp8=kv_in_fp8)
    site = Site(devices=(device,) * len(counts), num_cores=16 * len(counts), edge="shm")
    work = Workload(num_sessions=num_sessions, num_captions=num_captions)
    found = forecast(sizes, site, work, Layout(chains=(chain_of(counts),), vision=vision))
    assert found.captions_per_s == pytest.approx(measured, rel=0.25 if sizes.num_experts else 0.1)
    assert found.captions_per_s == pytest.approx(predicted, abs=0.5), "what the document says"
