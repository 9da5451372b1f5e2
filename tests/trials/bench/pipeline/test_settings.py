from pathlib import Path
from typing import Any

import pytest

from broker_pipeline.tools.local.gpus.devices import CudaDevice
from trials.bench.pipeline.settings import PipelineSettings
from trials.bench.shape_artifact import write_shape_artifact
from trials.bench.work import Rounds, Work

H100 = CudaDevice("NVIDIA H100 80GB HBM3", 85 * 10**9)
WORK = Work(prompt="Describe this image", pictures=(), picture_side=448, num_output_tokens=64, num_in_flight=512)
ROUNDS = Rounds(pictures="pictures", warm_up=WORK, timed=())


def settings(**changes: Any) -> PipelineSettings:
    options: dict[str, Any] = dict.fromkeys(("dtype", "num_threads", "num_conductors", "kv_tokens", "profile"))
    options |= {"num_pictures": 8, "picture_side": 448, "num_output_tokens": 64, "num_in_flight": 512, "num_rounds": 1}
    options |= {"prompt": "Describe this image", "device": "cuda", "num_stages": (1,), "layouts": (), "mps": False}
    options |= {
        "vision": ("shared",),
        "num_sessions": 512,
        "kv_dtype": "auto",
        "gpu_memory_gb": None,
        "with_in_process": False,
        "in_process_threads": (),
    }
    options |= {"predict": True, "extra_arguments": {}}
    return PipelineSettings(**options | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape_artifact(tmp_path_factory.mktemp("8b") / "8B", "8B")


def test_layouts_are_those_of_up_and_each_has_a_prediction(model: Path, tmp_path: Path) -> None:
    asked = settings(layouts=("stages=1", "copies=4", "copies=2,stages=2", "stages=4"), vision=("shared", "every"))
    gpus = (H100,) * 4
    systems = list(asked.systems(model, tmp_path, ROUNDS, gpus))
    assert [system.name for system in systems][::2] == [
        "whole system, 1 stage, vision shared",
        "whole system, 4 copies of 1 stage, vision shared",
        "whole system, 2 copies of 2 stages, vision shared",
        "whole system, 4 stages, vision shared",
    ]
    assert [len(system.local.stages) for system in systems][::2] == [1, 4, 4, 4]
    assert [system.local.vision_stages for system in systems[:6]] == [
        (0,),
        (0,),
        (0, 1, 2, 3),
        (0, 1, 2, 3),
        (0, 2),
        (0, 1, 2, 3),
    ]
    assert len({system.local.data_dir for system in systems}) == len(systems)
    one, copies = (asked.forecast(model, system.layout, 219, gpus) for system in (systems[0], systems[2]))
    assert one.num_sessions == copies.num_sessions == 512, "in flight, on all copies together"
    assert copies.captions_per_s >= one.captions_per_s


def test_conductors_divide_the_copies(model: Path, tmp_path: Path) -> None:
    asked = settings(layouts=("copies=2,stages=2",), num_conductors=2)
    [system] = asked.systems(model, tmp_path, ROUNDS, (H100,) * 4)
    assert (system.local.num_conductors, system.local.shares) == (2, ("0", "0", "1", "1"))
    assert system.name.endswith(", 2 conductors")


def test_a_copy_has_room_for_its_share_of_the_sessions(model: Path, tmp_path: Path) -> None:
    one, four = settings(layouts=("copies=1", "copies=4")).systems(model, tmp_path, ROUNDS, (H100,) * 4)
    assert one.local.kv_tokens is not None
    assert four.local.kv_tokens is not None
    assert 0.25 <= four.local.kv_tokens / one.local.kv_tokens < 0.3


def test_on_a_processor_stages_are_of_equal_size(model: Path, tmp_path: Path) -> None:
    [system] = settings(num_stages=(2,), device="cpu", vision=("separate",)).systems(model, tmp_path, ROUNDS, ())
    assert [len(blocks) for blocks in system.local.stages] == [18, 18]
    assert (system.local.num_vision_workers, system.local.device) == (1, "cpu")
    assert system.name == "whole system, 2 stages"


def test_work_is_greedy_unless_it_is_sampled(tmp_path: Path) -> None:
    greedy, sampled = (
        settings(num_pictures=1, picture_side=32, is_sampled=is_sampled).draw(tmp_path).timed[0].sampling
        for is_sampled in (False, True)
    )
    assert (greedy.temperature, greedy.top_k) == (0.0, None)
    assert (sampled.temperature, sampled.top_p, sampled.top_k) == (0.7, 0.8, 20)
    assert greedy.max_tokens == sampled.max_tokens
    assert sampled.ignore_eos


@pytest.mark.parametrize(("apart", "order"), [(False, [0, 0, 1, 1]), (True, [0, 1, 0, 1])])
def test_questions_about_a_picture_come_together_or_apart(tmp_path: Path, apart: bool, order: list[int]) -> None:
    asked = settings(num_pictures=4, picture_side=32, num_questions=2, questions_apart=apart).draw(tmp_path).timed[0]
    names = sorted(set(asked.pictures))
    assert [names.index(name) for name, _ in asked.questions] == order
    assert len(set(asked.questions)) == 4
