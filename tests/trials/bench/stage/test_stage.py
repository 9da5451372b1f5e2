import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker_pipeline.errors import ConfigurationError
from export.synthetic.shapes import SHAPE_NAMES, hf_config, shape_config
from stages.qwen3_vl.config import ModelConfig
from trials.bench.stage.command import command
from trials.bench.stage.floor import DeviceRates, ItemSizes, step_needs

CONFIGS = Path(__file__).parents[3] / "fixtures" / "hf-configs"


@pytest.mark.parametrize("name", ["2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B"])
def test_shapes_are_those_of_the_published_models(name: str) -> None:
    published = ModelConfig.from_json((CONFIGS / name / "config.json").read_bytes())
    ours = shape_config(name)
    assert ours.text == published.text
    assert ours.vision == published.vision
    assert ours.tie_word_embeddings == published.tie_word_embeddings


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_a_few_layers_can_be_taken(name: str) -> None:
    assert shape_config(name, 2).text.num_layers == 2


@pytest.mark.parametrize(
    ("name", "num_layers", "field"), [("9B", None, "shape"), ("8B", 37, "layers"), ("8B", 0, "layers")]
)
def test_what_there_is_not_is_named(name: str, num_layers: int | None, field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        hf_config(name, num_layers)
    assert caught.value.field == field


def test_the_floor_of_8b_is_the_known_one() -> None:
    """15.1 GB of weights at 3.02 TB/s, and 300 tokens of 144 KiB for every session."""
    text = shape_config("8B").text
    rates = DeviceRates(bytes_per_s=3.02e12, flops_per_s=7e14)
    for num_sessions, known_ms in ((1, 5.02), (16, 5.24), (64, 5.94), (128, 6.88), (256, 8.75)):
        held = num_sessions * 300
        needs = step_needs(
            text,
            text.num_layers,
            num_tokens=num_sessions,
            num_cached_tokens=held,
            num_pairs=held,
            num_sampled=num_sessions,
            itemsizes=ItemSizes(weight=2, kv=2, other=2),
        )
        floor_s, bound = needs.floor(rates)
        assert bound == "memory"
        assert floor_s * 1e3 == pytest.approx(known_ms, rel=0.02)


@pytest.mark.parametrize("more", [[], ["--quantize", "fp8"], ["--kv-dtype", "fp8"]])
def test_the_command_times_decode_and_prefill(tmp_path: Path, more: list[str]) -> None:
    path = tmp_path / "stage.json"
    arguments = shlex.split("--shape tiny --batch 2 --prefill 2 --context 8 --steps 3 --warm-up 1 --mixed 3:1")
    result = CliRunner().invoke(command, [*arguments, *more, "--json", str(path)])
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["rows"]
    assert [(row["kind"], row["num_tokens"], row["step_s"]["num_samples"]) for row in rows] == [
        ("decode", 2, 3),
        ("prefill", 16, 3),
        ("mixed", 11, 3),
    ]
    assert all(row["floor_s"] > 0 for row in rows)
    assert all(0 < row["launch_s"]["median"] <= row["step_s"]["median"] for row in rows)
    assert all(row["device_s"] is None for row in rows)


@pytest.mark.parametrize("text", ["3", "3:0", "a:1", "1:2:3"])
def test_a_mixed_step_is_two_numbers(text: str) -> None:
    result = CliRunner().invoke(command, ["--shape", "tiny", "--mixed", text])
    assert result.exit_code == 2
    assert "SESSIONS:PROMPTS" in result.output
