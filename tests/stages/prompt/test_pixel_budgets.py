"""Which file says how pictures and videos are resized; compared with transformers in tests/parity."""

from __future__ import annotations

import json

import pytest

from broker_pipeline.errors import ModelConfigError
from stages.prompt.pixel_budgets import read_pixel_budgets
from stages.prompt.preprocess import PixelBudget
from tests.kit.models.transformers_oracle import FP32, config_of

VISION = config_of(FP32[0]).vision
RULES = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def sized(longest: int) -> dict:
    return RULES | {"size": {"shortest_edge": 1024, "longest_edge": longest}}


NESTED = {"image_processor": sized(5000), "video_processor": sized(6000)}


@pytest.mark.parametrize(
    ("files", "image", "video"),
    [
        ({"preprocessor_config.json": sized(2000)}, 2000, 2000),
        ({"preprocessor_config.json": sized(2000), "video_preprocessor_config.json": sized(3000)}, 2000, 3000),
        ({"processor_config.json": NESTED}, 5000, 6000),
        ({"processor_config.json": NESTED, "preprocessor_config.json": sized(2000)}, 5000, 6000),
        ({"processor_config.json": {"chat_template": "x"}, "preprocessor_config.json": sized(2000)}, 2000, 2000),
        (
            {"processor_config.json": {"image_processor": sized(5000)}, "video_preprocessor_config.json": sized(3000)},
            5000,
            3000,
        ),
        ({"processor_config.json": {"image_processor": sized(5000)}}, 5000, None),
    ],
)
def test_nested_sections_count_before_files_of_their_own(tmp_path, files, image, video):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    expected = (PixelBudget(1024, image), PixelBudget(1024, video) if video else None)
    assert read_pixel_budgets(tmp_path, VISION) == expected


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("config.json", {}, "preprocessor_config.json"),
        ("processor_config.json", {"video_processor": sized(6000)}, "preprocessor_config.json"),
        ("processor_config.json", [], "processor_config.json"),
        ("processor_config.json", {"image_processor": 3}, "processor_config.json.image_processor"),
        (
            "processor_config.json",
            {"image_processor": sized(5000), "video_processor": sized(5000) | {"cap_pixels_per_frame": True}},
            "processor_config.json.video_processor.cap_pixels_per_frame",
        ),
        ("preprocessor_config.json", sized(5000) | {"resample": 2}, "preprocessor_config.json.resample"),
        ("preprocessor_config.json", sized(5000) | {"rescale_factor": 1}, "preprocessor_config.json.rescale_factor"),
        ("preprocessor_config.json", sized(5000) | {"do_normalize": False}, "preprocessor_config.json.do_normalize"),
        ("preprocessor_config.json", {"size": sized(5000)["size"]}, "preprocessor_config.json.patch_size"),
    ],
)
def test_what_is_missing_or_of_another_model_is_named(tmp_path, name, content, field):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ModelConfigError) as refused:
        read_pixel_budgets(tmp_path, VISION)
    assert refused.value.field == field
