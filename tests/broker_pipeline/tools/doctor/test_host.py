"""What is on the host itself: files of the artifact, GPU and compiler, packages, room."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from broker_pipeline.artifact_manifest import HEAD_FILE, block_file
from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError, ConfigurationError
from broker_pipeline.process.host_room import Found
from broker_pipeline.tools.doctor.artifact import judge_artifact, look_at_artifact
from broker_pipeline.tools.doctor.device import DeviceFacts, judge_device, look_at_device
from broker_pipeline.tools.doctor.host import judge_host, needs_of
from broker_pipeline.tools.doctor.packages import judge_packages, look_at_packages
from broker_pipeline.tools.local.gpus.devices import CudaDevice
from broker_pipeline.wire.edges.settings import EdgeSettings
from tests.kit.findings import by_check, levels
from tests.kit.models.tiny_artifacts import tiny_artifact

GPU = CudaDevice("H100", 80 * 10**9, 79 * 10**9, "9.0")
WITH_GPU = DeviceFacts("2.12", "NVIDIA 580", (GPU,), True)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact(tied=False), tmp_path / "8b"))


def looked_at(artifact: Path, *blocks: str, is_full: bool = False) -> dict[str, str]:
    return levels(judge_artifact(look_at_artifact(artifact, blocks, vision=False, is_full=is_full)))


def test_what_is_missing_is_said_with_the_command_that_brings_it(artifact: Path) -> None:
    for name in (block_file(2), HEAD_FILE):
        (artifact / name).unlink()
    assert looked_at(artifact, "0:2") == {"artifact": "ok"}
    found = by_check(judge_artifact(look_at_artifact(artifact, ("0:2", "2:"), vision=True, is_full=False)))["artifact"]
    assert (found.level, found.remedy) == ("fail", f"`broker-pipeline fetch --blocks 2:3 --head FROM {artifact}`")


def test_damage_is_found_by_size_or_by_every_byte(artifact: Path) -> None:
    path = artifact / block_file(1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert looked_at(artifact) == {"artifact": "ok"}
    assert looked_at(artifact, is_full=True) == {"artifact": "fail"}
    path.write_bytes(content[:-1])
    assert looked_at(artifact) == {"artifact": "fail"}


def test_what_is_no_artifact_or_has_no_such_blocks(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="is not an artifact"):
        looked_at(tmp_path)
    with pytest.raises(ConfigurationError, match="has blocks 0:6"):
        looked_at(artifact, "4:9")
    (artifact / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactCorruptError, match="tokenizer"):
        looked_at(artifact)


@pytest.mark.parametrize(
    ("facts", "device", "is_worker", "expected"),
    [
        (WITH_GPU, "auto", True, {"device": "ok", "driver": "ok", "compiler": "ok"}),
        (replace(WITH_GPU, has_compiler=False), "auto", True, {"device": "ok", "driver": "ok", "compiler": "fail"}),
        (replace(WITH_GPU, devices=()), "auto", True, {"device": "fail"}),
        (replace(WITH_GPU, devices=(), driver=""), "auto", True, {"device": "ok"}),
        (replace(WITH_GPU, devices=(), driver=""), "cuda:0", True, {"device": "fail"}),
        (replace(WITH_GPU, torch=None), "auto", True, {"device": "fail"}),
        (replace(WITH_GPU, torch=None), "auto", False, {"device": "ok"}),
        (replace(WITH_GPU, devices=()), "cpu", True, {"device": "ok"}),
    ],
)
def test_devices_by_their_facts(facts: DeviceFacts, device: str, is_worker: bool, expected: dict[str, str]) -> None:
    assert levels(judge_device(facts, device, is_worker=is_worker)) == expected


def test_an_old_or_a_busy_gpu_is_looked_at() -> None:
    for device in (CudaDevice("T4", 16, 16, "7.5"), CudaDevice("H100", 80, 10, "9.0")):
        assert levels(judge_device(replace(WITH_GPU, devices=(device,)), "auto", is_worker=True))["device"] == "warn"


async def test_this_machine_has_a_device_of_some_kind() -> None:
    facts = await look_at_device("auto")
    assert facts.torch is not None
    assert levels(judge_device(facts, "cpu", is_worker=True)) == {"device": "ok"}


def test_packages_here_are_those_that_are_needed_and_others_are_named() -> None:
    found = look_at_packages(frozenset({"worker"}))
    assert any(text.startswith("torch") for text in found)
    assert not any(text.startswith("huggingface") for text in look_at_packages(frozenset()))
    assert levels(judge_packages(found)) == {"packages": "ok"}
    wrong = by_check(judge_packages(found | {"nats-py<2.17,>=2.15": "2.20.0", "rich>=14": None}))["packages"]
    assert (wrong.level, "nats-py is 2.20.0" in wrong.found, "rich is not" in wrong.found) == ("fail", True, True)


def test_room_that_is_too_little_is_said_with_what_to_do(tmp_path: Path) -> None:
    needs = needs_of(EdgeSettings(), tmp_path)
    plenty = Found(65_536, {room.path: (2**40, 10**6) for room in needs.rooms})
    assert levels(judge_host(needs, plenty)) == {"host": "ok"}
    little = judge_host(needs, Found(100, {room.path: (1000, 1) for room in needs.rooms}))
    assert len(little) == 1 + 2 * len(needs.rooms)
    assert {finding.level for finding in little} == {"fail"}
    assert any("ulimit" in finding.remedy for finding in little)
    assert any("--shm-size" in finding.remedy for finding in little)
