"""The planner's numbers against what was measured: docs/benchmarks.md, and the rows that issue 11 begins with."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from broker_pipeline.planning.devices import EDGES, gpu, processor
from broker_pipeline.planning.forecast import forecast
from broker_pipeline.planning.layout import Layout, LayoutRequest, VisionPlace, chain_of
from broker_pipeline.planning.planner import choose_plan
from broker_pipeline.planning.site import Site
from broker_pipeline.planning.step_time import head_s, layer_s, tower_s
from broker_pipeline.planning.workload import Workload
from tests.kit.models.planned_sizes import sizes_of

DOCS = Path(__file__).parents[3] / "docs"
H100 = gpu("NVIDIA H100 80GB HBM3", 85 * 10**9)
H200 = gpu("NVIDIA H200", 150 * 10**9)
SPREAD = Workload(
    num_prompt_tokens=236, experts_share=1.0
)  # context 300 less half of the output; every row another prompt


@pytest.mark.parametrize(
    ("shape", "num_layers", "num_sessions", "measured_ms"),
    [
        *(("8B", 36, *row) for row in [(1, 5.72), (16, 6.41), (64, 7.59), (128, 8.75), (256, 11.89)]),
        *(("30B-A3B", 48, *row) for row in [(1, 3.49), (16, 15.14), (64, 22.27), (128, 23.62), (256, 25.52)]),
        *(("235B-A22B", 12, *row) for row in [(64, 19.8), (256, 21.3)]),
    ],
)
def test_decode_steps(shape: str, num_layers: int, num_sessions: int, measured_ms: float) -> None:
    model = sizes_of(shape)
    step = num_layers * layer_s(model, H100, SPREAD, num_sessions, num_sessions) + head_s(model, H100, num_sessions)
    assert 1e3 * step == pytest.approx(measured_ms, rel=0.15)


@pytest.mark.parametrize(
    ("shape", "num_layers", "measured_ms"), [("8B", 36, 58.0), ("30B-A3B", 48, 45.4), ("235B-A22B", 12, 39.1)]
)
def test_prefill_of_eight_prompts_of_300_tokens(shape: str, num_layers: int, measured_ms: float) -> None:
    step = num_layers * layer_s(sizes_of(shape), H100, SPREAD, 2400, 0)
    assert 1e3 * step == pytest.approx(measured_ms, rel=0.15)


def test_the_tower() -> None:
    assert 1e3 * tower_s(sizes_of("8B"), H100, 196) == pytest.approx(1.88, rel=0.05)


@pytest.mark.parametrize(
    ("shape", "device", "counts", "num_sessions", "captions_per_s"),
    [
        ("8B", H100, [36], 512, 85.1),
        ("8B", H100, [36], 256, 79.8),
        ("8B", H200, [36], 512, 103.3),
        ("8B", H200, [18, 18], 512, 135),
        ("30B-A3B", H100, [48], 512, 78.7),
        ("30B-A3B", H200, [48], 512, 99.4),
        ("235B-A22B", H200, [23, 24, 24, 23], 384, 53.7),
        ("235B-A22B", H200, [23, 24, 24, 23], 704, 63.4),
    ],
)
def test_whole_systems(
    shape: str, device: object, counts: Sequence[int], num_sessions: int, captions_per_s: float
) -> None:
    site = Site(devices=(device,) * len(counts), num_cores=16 * len(counts))
    layout = Layout(chains=(chain_of(counts),), vision="shared")
    found = forecast(sizes_of(shape), site, Workload(num_sessions=num_sessions), layout)
    # Those of 235B ran before the scheduler counted what a microbatch costs the conductor: it would have fewer now.
    assert found.captions_per_s == pytest.approx(captions_per_s, rel=0.17 if shape == "235B-A22B" else 0.15)
    assert found.is_estimated == (device is H200), "its rates were inferred from such rows"


def test_pictures_are_encoded_beside_all_stages_where_one_process_would_have_to_encode_too_many() -> None:
    site, work = Site(devices=(H100,) * 4, num_cores=64, edge="shm"), Workload(num_sessions=1024)
    assert choose_plan(sizes_of("8B"), site, work, LayoutRequest(num_copies=1, num_stages=4)).layout.vision == "beside"


@pytest.mark.parametrize(("num_captions", "captions_per_s"), [(1024, 73.4), (2048, 79.8)])
def test_a_round_is_as_much_slower_as_its_ramp_is_long(num_captions: int, captions_per_s: float) -> None:
    site, layout = Site(devices=(H100,), num_cores=16), Layout(chains=(chain_of([36]),), vision="shared")
    work = Workload(num_sessions=256, num_captions=num_captions)
    assert forecast(sizes_of("8B"), site, work, layout).captions_per_s == pytest.approx(captions_per_s, rel=0.1)


def test_edges_cost_what_a_run_of_bench_edges_says() -> None:
    rows = json.loads((DOCS / "receipts" / "edges-64-cores.json").read_text())["rows"]
    measured = {(row["way"], row["num_bytes"] // 1024): row for row in rows}
    for kind in ("shm", "tcp", "nats"):
        assert EDGES[kind].latency_s == pytest.approx(measured[kind, 8]["p50_s"], rel=0.05)
    assert EDGES["shm"].bytes_per_s == pytest.approx(measured["shm", 16384]["bytes_per_s"], rel=0.05)
    assert EDGES["tcp"].bytes_per_s < measured["tcp", 16384]["bytes_per_s"], "the network is slower than its ends"
    assert EDGES["nats"].total_bytes_per_s == pytest.approx(measured["nats", 16384]["bytes_per_s"], rel=0.05)
    three_mib = measured["nats", 3072]
    assert EDGES["nats"].bytes_per_s == pytest.approx(three_mib["num_bytes"] / three_mib["p50_s"], rel=0.05)


@pytest.mark.parametrize(
    ("counts", "vision", "captions_per_s"),
    [([36], "shared", 73.4), ([18, 18], "shared", 71.8), ([36], "separate", 70.4)],
)
def test_processes_that_share_one_gpu(counts: Sequence[int], vision: VisionPlace, captions_per_s: float) -> None:
    layout = Layout(chains=(chain_of(counts),), vision=vision, num_vision_workers=int(vision == "separate"))
    found = forecast(sizes_of("8B"), Site(devices=(H100,), num_cores=16), Workload(num_sessions=256), layout)
    assert found.captions_per_s == pytest.approx(captions_per_s, rel=0.15)


@pytest.mark.parametrize(("counts", "num_sessions", "captions_per_s"), [([2, 2, 1], 64, 24.6), ([5], 32, 28.0)])
def test_a_processor_is_only_estimated(counts: Sequence[int], num_sessions: int, captions_per_s: float) -> None:
    work = Workload(num_prompt_tokens=50, num_visual_tokens=16, num_sessions=num_sessions)
    layout = Layout(chains=(chain_of(counts),), vision="separate", num_vision_workers=1)
    found = forecast(sizes_of("demo"), Site(devices=(processor(2, 8 * 10**9),), num_cores=2), work, layout)
    assert found.captions_per_s == pytest.approx(captions_per_s, rel=0.3)
    assert found.is_estimated


@pytest.mark.parametrize(
    ("name", "share", "is_estimated"),
    [
        ("NVIDIA H100 80GB HBM3", 1.0, False),
        ("NVIDIA H100 NVL", 1.0, False),
        ("NVIDIA H100 PCIe", 0.6, True),
        ("NVIDIA L40S", 0.26, True),
        ("NVIDIA L4", 0.09, True),
        ("NVIDIA A100-SXM4-80GB", 0.6, True),
        ("NVIDIA GeForce RTX 4090", 0.3, True),
        ("NVIDIA Quadro Unheard Of", 0.15, True),
    ],
)
def test_gpus_are_known_by_name_or_guessed(name: str, share: float, is_estimated: bool) -> None:
    device = gpu(name, 24 * 10**9)
    assert device.bytes_per_s / H100.bytes_per_s == pytest.approx(share, rel=0.05)
    assert (device.is_estimated, device.memory_bytes) == (is_estimated, 24 * 10**9)
