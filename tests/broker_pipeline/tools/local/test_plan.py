from pathlib import Path
from typing import Any

import pytest

from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.local.gpus.devices import (
    assign_devices,
    cuda_devices,
    threads_per_worker,
)
from broker_pipeline.tools.local.plan import LocalSettings, PlannedService, plan_services

TWO_STAGES = (BlockRange(start=0, stop=2), BlockRange(start=2, stop=6))


def plan(**fields: Any) -> dict[str, PlannedService]:
    settings = LocalSettings(**{"model": Path("/m"), "stages": TWO_STAGES, "data_dir": Path("/d"), **fields})
    services = plan_services(settings, nats_url="nats://n", redis_url="redis://r", addresses={"gateway-0": ("h", 81)})
    return {service.name: service for service in services}


def flags(service: PlannedService) -> dict[str, str]:
    words = service.arguments[1:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_every_part_gets_its_own_and_the_common_flags() -> None:
    services = plan(num_vision_workers=2, num_conductors=2, kv_tokens=99, drain_s=3.0)
    assert list(services) == ["gateway-0", "conductor-0", "conductor-1", "vision-0", "vision-1", "stage-0", "stage-1"]
    for service in services.values():
        assert flags(service)["--nats-url"] == "nats://n"
        assert flags(service)["--redis-url"] == "redis://r"
        assert flags(service)["--drain-s"] == "3.0"
    assert flags(services["gateway-0"])["--port"] == "81"
    stage = flags(services["stage-1"])
    assert (stage["--blocks"], stage["--name"], stage["--kv-tokens"]) == ("2:6", "stage-1", "99")
    assert "--kv-tokens" not in flags(services["vision-0"])
    assert "--share" not in stage
    assert flags(plan(shares=("x", "y"))["stage-1"])["--share"] == "y"
    assert services["vision-1"].arguments[0] == "vision"


def test_the_default_output_limit_is_the_conductors() -> None:
    services = plan(default_max_tokens=77)
    assert flags(services["conductor-0"])["--default-max-tokens"] == "77"
    assert [name for name, service in services.items() if "--default-max-tokens" in service.arguments] == [
        "conductor-0"
    ]
    assert "--default-max-tokens" not in flags(plan()["conductor-0"])


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        ({"is_deterministic": True}, "--deterministic"),
        ({"is_deterministic": False}, "--no-deterministic"),
        ({"verify_weights": False}, "--no-verify-weights"),
    ],
)
def test_how_to_load_and_compute_is_every_workers(changed: dict[str, bool], flag: str) -> None:
    asked = {name for name, service in plan(**changed).items() if flag in service.arguments}
    assert asked == {"stage-0", "stage-1", "vision-0"}
    assert not any(flag in service.arguments for service in plan().values())


def test_devices_are_assigned_to_stages_first() -> None:
    services = plan(num_cuda_devices=3, num_vision_workers=2)
    assigned = {name: flags(services[name])["--device"] for name in ("stage-0", "stage-1", "vision-0", "vision-1")}
    assert assigned == {"stage-0": "cuda:0", "stage-1": "cuda:1", "vision-0": "cuda:2", "vision-1": "cuda:0"}


def test_a_named_device_is_everyones() -> None:
    assert flags(plan(num_cuda_devices=3, device="cpu")["stage-1"])["--device"] == "cpu"


def test_extra_arguments_reach_one_command_only() -> None:
    services = plan(extra_arguments={"gateway": ("--max-images", "3")})
    assert flags(services["gateway-0"])["--max-images"] == "3"
    assert "--max-images" not in flags(services["stage-0"])


def test_without_gpus_all_compute_on_the_cpu() -> None:
    assert assign_devices(3, 0) == ["cpu"] * 3


@pytest.mark.parametrize("num_workers", [1, 2, 1000])
def test_every_worker_has_a_thread(num_workers: int) -> None:
    assert threads_per_worker(num_workers) >= 1


def test_a_shared_process_leaves_the_gpu_to_one_worker() -> None:
    services = plan(stages=TWO_STAGES[:1], num_cuda_devices=1, num_vision_workers=0, vision_stages=(0,))
    assert "--vision" in services["stage-0"].arguments
    assert "--kv-share" not in services["stage-0"].arguments


@pytest.mark.parametrize(("device", "num_gpus"), [(None, 2), ("cuda:1", 2), ("auto", 1)])
def test_workers_on_gpus_have_one_thread_unless_told_otherwise(device: str | None, num_gpus: int) -> None:
    services = plan(num_cuda_devices=num_gpus, device=device)
    assert {flags(services[name])["--threads"] for name in ("stage-0", "stage-1", "vision-0")} == {"1"}
    assert flags(plan(num_cuda_devices=num_gpus, device=device, num_threads=3)["stage-0"])["--threads"] == "3"


async def test_without_a_driver_there_are_no_cuda_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await cuda_devices() == ()


def test_stages_on_one_gpu_share_its_memory() -> None:
    services = plan(num_cuda_devices=1)
    shares = [float(flags(services[name])["--kv-share"]) for name in services if name.startswith("stage")]
    assert sum(shares) < 0.8
    alone = plan(num_cuda_devices=8)
    assert all("--kv-share" not in flags(alone[name]) for name in alone)
    assert "--kv-share" not in flags(plan(num_cuda_devices=1, kv_tokens=99)["stage-0"])


def test_the_first_stage_may_take_the_pictures_as_well() -> None:
    services = plan(vision_stages=(0,), num_vision_workers=0)
    assert list(services) == ["gateway-0", "conductor-0", "stage-0", "stage-1"]
    assert "--vision" in services["stage-0"].arguments
    assert "--vision" not in services["stage-1"].arguments


def test_every_stage_may_take_pictures() -> None:
    services = plan(vision_stages=(0, 1), num_vision_workers=0)
    assert all("--vision" in services[f"stage-{index}"].arguments for index in (0, 1))
