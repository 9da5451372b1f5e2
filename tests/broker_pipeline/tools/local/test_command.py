import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker_pipeline.errors import ArtifactMissingError, ConfigurationError
from broker_pipeline.tools.local.command import default_gateway_processes, local_settings
from broker_pipeline.tools.local.gpus.devices import CudaDevice, check_device
from broker_pipeline.tools.local.plan import LocalSettings, plan_services
from broker_pipeline.wire.edges.options import EDGE_NAMES
from tests.kit.models.tiny_artifacts import tiny_artifact
from trials.bench.shape_artifact import write_shape_artifact

H100 = CudaDevice("NVIDIA H100 80GB HBM3", 85 * 10**9)
SMALL = CudaDevice("NVIDIA L4", 16 * 10**9)


@pytest.fixture(scope="session")
def model_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape_artifact(tmp_path_factory.mktemp("8b") / "8B", "8B")


def up(gpus: tuple[CudaDevice, ...] = (), **changes: Any) -> tuple[LocalSettings, tuple[str, str]]:
    left_out = (
        "stages cut data_dir nats_url redis_url secrets device dtype threads kv_tokens "
        "gpu_memory_gb default_max_tokens profile"
    )
    options: dict[str, Any] = dict.fromkeys((*left_out.split(), "otlp_endpoint", "vision_workers", "conductors"))
    options |= {
        "model": tiny_artifact(),
        "gateway_processes": None,
        "layout": "auto",
        "vision_process": "auto",
        "kv_dtype": "auto",
        "deterministic": False,
        "insecure": False,
        "mps": False,
        "nats_replicas": 1,
        "verify_weights": True,
        "on_other_model": "restart",
        **dict.fromkeys(EDGE_NAMES),
        "edges": "auto",
        "host": "127.0.0.1",
        "port": 0,
        "namespace": "bp",
        "media_roots": (),
    }
    options |= {"pipeline": "main", "drain_s": 1.0, "log_level": "info"}
    return local_settings(options | changes, gpus)


def bounds(settings: LocalSettings) -> list[tuple[int, int]]:
    return [(blocks.start, blocks.stop) for blocks in settings.stages]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [(0, 2), (2, 4), (4, 6)]),
        ({"stages": 2}, [(0, 3), (3, 6)]),
        ({"layout": "stages=2"}, [(0, 3), (3, 6)]),
        ({"layout": "copies=2,stages=2"}, [(0, 3), (3, 6), (0, 3), (3, 6)]),
        ({"cut": "1,5"}, [(0, 1), (1, 5), (5, 6)]),
        ({"cut": "1,5", "stages": 3}, [(0, 1), (1, 5), (5, 6)]),
    ],
)
def test_on_a_processor_stages_are_of_equal_size_unless_cut(
    changes: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    settings, lines = up(**changes)
    assert bounds(settings) == expected
    assert (settings.vision_stages, settings.num_vision_workers, settings.device) == ((), 1, None)
    assert "estimated" in lines[1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"stages": 7}, "stages"),
        ({"stages": 2, "cut": "1,5"}, "cut"),
        ({"cut": "6"}, "cut"),
        ({"layout": "copies=x"}, "layout"),
        ({"layout": "copies=2", "stages": 2}, "layout"),
        ({"layout": "stages=2", "cut": "1"}, "layout"),
        ({"vision_process": "beside", "vision_workers": 2}, "vision_workers"),
        ({"vision_process": "every", "vision_workers": 2}, "vision_workers"),
        ({"mps": True}, "mps"),
    ],
)
def test_impossible_layouts_are_refused_by_their_flag(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        up(**changes)
    assert caught.value.field == field


def test_a_directory_that_is_no_artifact_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="broker-pipeline export"):
        up(model=tmp_path)


@pytest.mark.parametrize(
    ("gpus", "changes", "stages", "vision_stages", "num_vision_workers", "device"),
    [
        ((H100,), {}, 1, (0,), 0, None),
        ((H100,), {"vision_workers": 2}, 1, (0,), 1, None),
        ((H100,), {"vision_process": "separate"}, 1, (), 1, None),
        ((H100,) * 4, {}, 4, (0, 1, 2, 3), 0, None),
        ((H100,) * 4, {"device": "cuda"}, 4, (0, 1, 2, 3), 0, None),
        ((H100,) * 4, {"device": "cuda:2"}, 1, (0,), 0, "cuda:2"),
        ((H100,) * 4, {"device": "cpu"}, 3, (), 1, "cpu"),
        ((H100,) * 4, {"layout": "copies=2,stages=2", "vision_process": "every"}, 4, (0, 1, 2, 3), 0, None),
        ((H100,) * 4, {"layout": "copies=2,stages=2", "vision_process": "shared"}, 4, (0, 2), 0, None),
        ((SMALL,) * 4, {"vision_process": "every"}, 4, (0, 1, 2, 3), 0, None),
    ],
)
def test_on_gpus_the_planner_chooses_what_was_not_asked_for(
    model_8b: Path,
    gpus: tuple[CudaDevice, ...],
    changes: dict[str, Any],
    stages: int,
    vision_stages: tuple[int, ...],
    num_vision_workers: int,
    device: str | None,
) -> None:
    settings, _ = up(gpus, model=model_8b, **changes)
    assert len(settings.stages) == stages
    assert settings.vision_stages == vision_stages
    assert settings.num_vision_workers == num_vision_workers
    assert (settings.device, settings.num_cuda_devices) == (device, len(gpus))


def test_conductors_have_some_of_the_copies_each(model_8b: Path) -> None:
    settings, _ = up((H100,) * 4, model=model_8b, layout="copies=2,stages=2", conductors=3)
    assert (settings.shares, settings.num_conductors) == (("0", "0", "1", "1"), 3)
    settings, _ = up((H100,) * 4, model=model_8b, conductors=2)
    assert (settings.shares, settings.num_conductors) == (("0", "0", "1", "1"), 2)
    alone, _ = up((H100,) * 4, model=model_8b)
    assert (set(alone.shares), alone.num_conductors) == ({""}, 1)
    jobs = [int(each.extra_arguments["conductor"][-1]) for each in (settings, alone)]
    assert 2 * jobs[0] > jobs[1] > jobs[0], "each has a part of the jobs"
    assert up((H100,), model=model_8b, conductors=2)[0].shares == ("",), "the second one stands by"


def test_conductors_take_as_many_sessions_as_the_layout_needs(model_8b: Path) -> None:
    settings, _ = up((H100,) * 4, model=model_8b, layout="stages=4")
    flag, predicted, *limits = settings.extra_arguments["conductor"]
    assert flag == "--predicted-captions-per-s"
    assert float(predicted) > 0
    assert limits == ["--max-sessions", "1280", "--max-jobs", "1536"]
    assert len(up((H100,), model=model_8b)[0].extra_arguments["conductor"]) == 2, "the defaults are enough"


def test_the_gateway_has_as_many_processes_as_the_rate_needs(model_8b: Path) -> None:
    assert up((H100,), model=model_8b)[0].num_gateway_processes == 1
    assert up((H100,), model=model_8b, gateway_processes=3)[0].num_gateway_processes == 3


def test_two_lines_say_what_was_chosen_and_why(model_8b: Path) -> None:
    _, (layout, rate) = up((H100, H100), model=model_8b)
    assert layout.startswith(
        "2 copies, each whole, vision in the same process: 8B has 17.5 GB of weights; 2 x H100 with 85.0 GB"
    )
    assert rate.startswith("predicted ")
    assert "captions/s of 64 tokens with 1,024 sessions" in rate
    assert "limit: the " in rate, "which one depends on this machine's cores"


def test_what_cannot_fit_is_refused(model_8b: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"does not fit.*GB are missing") as caught:
        up((SMALL,), model=model_8b)
    assert caught.value.field == "layout"


def test_a_plan_alone_starts_and_makes_nothing(tmp_path: Path) -> None:
    words = ["up", "--model", str(tiny_artifact()), "--plan", "--data-dir", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "broker_pipeline", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    layout, rate = done.stdout.splitlines()
    assert layout.startswith("1 copy, in 3 stages, blocks 0:2 2:4 4:6, vision by itself")
    assert rate.startswith("predicted")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "num_gpus", "said"),
    [
        ("foo", 0, "'foo' is no device; here are auto, cpu"),
        ("cuda:x", 1, "'cuda:x' is no device; here are auto, cpu, cuda:0"),
        ("", 0, "'' is no device; here are auto, cpu"),
        ("cuda", 0, "'cuda' is not on this machine; here are auto, cpu"),
        ("cuda:7", 2, "'cuda:7' is not on this machine; here are auto, cpu, cuda:0, cuda:1"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_starts(device: str, num_gpus: int, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        up((H100,) * num_gpus, device=device)
    assert (caught.value.message, caught.value.field) == (said, "device")


@pytest.mark.parametrize(("device", "num_gpus"), [("cpu", 0), ("auto", 0), ("cuda", 1), ("cuda:1", 2), ("auto", 1)])
def test_a_device_that_is_there_is_taken(device: str, num_gpus: int) -> None:
    check_device(device, num_gpus)


def test_state_is_kept_in_the_users_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings, _ = up(pipeline="other")
    assert settings.data_dir == tmp_path / "broker-pipeline" / "other"


@pytest.mark.parametrize(("num_cores", "expected"), [(1, 1), (4, 1), (8, 2), (16, 4), (192, 4)])
def test_the_gateway_gets_a_process_for_four_cores(num_cores: int, expected: int) -> None:
    assert default_gateway_processes(num_cores) == expected


def test_every_worker_gets_the_options_about_edges(tmp_path: Path) -> None:
    settings, _ = up(edges="tcp", edge_host="10.0.0.2", edge_port="7400-7415", edge_tls="off", data_dir=tmp_path)
    planned = plan_services(settings, nats_url="nats", redis_url="redis", addresses={"gateway-0": ("127.0.0.1", 0)})
    workers = [" ".join(each.arguments) for each in planned if each.name.partition("-")[0] in {"stage", "vision"}]
    assert len(workers) == 4
    for words in workers:
        assert "--edges tcp --edge-host 10.0.0.2 --edge-port 7400-7415 --edge-tls off" in words
        assert "--edge-ring-bytes" not in words, "it is left to the worker"


def test_a_gpu_that_is_taken_for_a_smaller_one_is_planned_as_one(model_8b: Path) -> None:
    settings, (chosen, _) = up((H100,), model=model_8b, gpu_memory_gb=24.0)
    assert "24.0 GB" in chosen, "the plan is for a GPU of that size"
    for planned in plan_services(settings, nats_url="", redis_url="", addresses={"gateway-0": ("", 0)}):
        limit = [value for flag, value in zip(planned.arguments, planned.arguments[1:], strict=False) if "gpu-" in flag]
        assert limit == (["24.0"] if planned.name.startswith(("stage", "vision")) else [])


def test_keys_and_values_in_fp8_are_planned_and_passed_on(model_8b: Path) -> None:
    said = [up((H100,), model=model_8b, gpu_memory_gb=24.0, kv_dtype=kv_dtype) for kv_dtype in ("auto", "fp8")]
    rates = [re.search(r"([\d.]+) captions/s", " ".join(lines)) for _, lines in said]
    assert rates[0] is not None
    assert rates[1] is not None
    assert float(rates[1][1]) > 1.5 * float(rates[0][1])
    assert said[0][1][1].endswith(f"; with --kv-dtype fp8 {rates[1][1]}")
    assert "--kv-dtype" not in up((H100,), model=model_8b)[1][1] + said[1][1][1], "where there is room"
    for planned in plan_services(said[1][0], nats_url="", redis_url="", addresses={"gateway-0": ("", 0)}):
        assert ("--kv-dtype fp8" in " ".join(planned.arguments)) == planned.name.startswith("stage")


def test_gpus_without_fp8_are_not_told_of_it_and_refuse_it(model_8b: Path) -> None:
    older = replace(H100, name="NVIDIA A100", capability="8.0")
    assert "--kv-dtype" not in up((older,), model=model_8b, gpu_memory_gb=24.0)[1][1]
    with pytest.raises(ConfigurationError, match="NVIDIA A100 has no FP8") as caught:
        up((H100, older), model=model_8b, kv_dtype="fp8")
    assert caught.value.field == "kv_dtype"


@pytest.mark.parametrize(
    ("gpus", "memory_gb", "words"),
    [
        ((H100,), 16.0, r"needs 23\.\d GB.* has 16\.0 GB: 7\.\d GB are missing"),
        ((H100,), 23.4, r"needs 23\.\d GB.* has 23\.4 GB: 0\.[1-9] GB are missing"),
        ((H100,), float("inf"), "--gpu-memory-gb inf: NVIDIA H100 80GB HBM3 has 85.0 GB"),
        ((H100, SMALL), 24.0, "NVIDIA L4 has 16.0 GB"),
        ((), 24.0, "no effect without GPUs"),
    ],
)
def test_a_smaller_gpu_that_cannot_be_is_refused(
    model_8b: Path, gpus: tuple[CudaDevice, ...], memory_gb: float, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        up(gpus, model=model_8b, gpu_memory_gb=memory_gb)
