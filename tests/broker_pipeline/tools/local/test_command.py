from pathlib import Path
from typing import Any

import pytest

from broker_pipeline.errors import ArtifactMissingError, ConfigurationError
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.local.command import choose_stages, default_gateway_processes, local_settings
from broker_pipeline.tools.local.plan import LocalSettings
from tests.kit.models.tiny_artifacts import tiny_artifact


def bounds(stages: tuple[BlockRange, ...]) -> list[tuple[int, int]]:
    return [(blocks.start, blocks.stop) for blocks in stages]


def test_stages_are_of_equal_size_unless_cut() -> None:
    model = tiny_artifact()
    assert bounds(choose_stages(model, 2, None, 0)) == [(0, 3), (3, 6)]
    assert bounds(choose_stages(model, None, "1,5", 0)) == [(0, 1), (1, 5), (5, 6)]
    assert bounds(choose_stages(model, 3, "1,5", 0)) == [(0, 1), (1, 5), (5, 6)]


def test_without_a_number_there_is_a_stage_per_gpu_or_three() -> None:
    model = tiny_artifact()
    assert len(choose_stages(model, None, None, 0)) == 3
    assert len(choose_stages(model, None, None, 2)) == 2
    assert len(choose_stages(model, None, None, 8)) == 6


@pytest.mark.parametrize(("num_stages", "cut", "field"), [(7, None, "stages"), (2, "1,5", "cut"), (None, "6", "cut")])
def test_impossible_cuts_are_refused(num_stages: int | None, cut: str | None, field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose_stages(tiny_artifact(), num_stages, cut, 0)
    assert caught.value.field == field


def test_a_directory_that_is_no_artifact_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="broker-pipeline export"):
        choose_stages(tmp_path, 2, None, 0)


def _settings(num_cuda_devices: int, **changes: Any) -> LocalSettings:
    left_out = "stages cut data_dir nats_url redis_url device dtype threads kv_tokens default_max_tokens profile"
    options: dict[str, Any] = dict.fromkeys(left_out.split())
    options |= {
        "model": tiny_artifact(),
        "vision_workers": 1,
        "gateway_processes": None,
        "vision_process": "auto",
        "deterministic": False,
        "verify_weights": True,
        "on_other_model": "restart",
        "edges": "auto",
        "host": "127.0.0.1",
        "port": 0,
        "namespace": "bp",
    }
    options |= {"pipeline": "main", "drain_s": 1.0, "log_level": "info"}
    return local_settings(options | changes, num_cuda_devices=num_cuda_devices)


@pytest.mark.parametrize(
    ("num_gpus", "changes", "expected"),
    [
        (0, {}, (False, 1)),
        (0, {"vision_process": "shared"}, (True, 0)),
        (1, {}, (True, 0)),
        (1, {"vision_workers": 2}, (True, 1)),
        (1, {"vision_process": "separate"}, (False, 1)),
    ],
)
def test_on_one_gpu_the_first_vision_worker_shares_a_process(
    num_gpus: int, changes: dict[str, Any], expected: tuple[bool, int]
) -> None:
    settings = _settings(num_gpus, **changes)
    assert (settings.shares_vision, settings.num_vision_workers) == expected


def test_state_is_kept_in_the_users_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = _settings(0, pipeline="other")
    assert settings.data_dir == tmp_path / "broker-pipeline" / "other"


@pytest.mark.parametrize(("num_cores", "expected"), [(1, 1), (4, 1), (8, 2), (16, 4), (192, 4)])
def test_the_gateway_gets_a_process_for_four_cores(num_cores: int, expected: int) -> None:
    assert default_gateway_processes(num_cores) == expected
