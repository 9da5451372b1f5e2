"""All six sizes are read from the hub's files; every wrong field is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from broker_pipeline.errors import ModelConfigError
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.rope_config import YarnScaling

FIXTURES = Path(__file__).parents[2] / "fixtures" / "hf-configs"
SIZES = {  # layers, hidden, heads, kv heads, experts, tied, vision depth, taps
    "2B": (28, 2048, 16, 8, 0, True, 24, (5, 11, 17)),
    "4B": (36, 2560, 32, 8, 0, True, 24, (5, 11, 17)),
    "8B": (36, 4096, 32, 8, 0, False, 27, (8, 16, 24)),
    "32B": (64, 5120, 64, 8, 0, False, 27, (8, 16, 24)),
    "30B-A3B": (48, 2048, 32, 4, 128, False, 27, (8, 16, 24)),
    "235B-A22B": (94, 4096, 64, 4, 128, False, 27, (8, 16, 24)),
}


def hub_json(size: str) -> dict:
    return json.loads((FIXTURES / size / "config.json").read_bytes())


@pytest.mark.parametrize("size", SIZES)
def test_every_size_of_the_family_is_read(size):
    config = ModelConfig.from_json((FIXTURES / size / "config.json").read_bytes())
    text, vision = config.text, config.vision
    found = (text.num_layers, text.hidden_size, text.num_heads, text.num_kv_heads, text.num_experts)
    assert (*found, config.tie_word_embeddings, vision.depth, vision.deepstack_indexes) == SIZES[size]
    assert text.head_dim == 128
    assert text.rope.theta == 5_000_000
    assert text.rope.mrope_section == (24, 20, 20)
    assert config.dtype == "bfloat16"
    assert config.eos_token_ids == (151645,)
    assert text.rope.yarn is None
    assert vision.rope_theta == 10_000
    assert vision.pixel_factor == 32
    assert vision.patch_values == 1536


@pytest.mark.parametrize("size", SIZES)
def test_the_spelling_of_transformers_5_means_the_same(size):
    resaved = hub_json(size)
    text = resaved["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    if "num_experts" in text:
        text["num_local_experts"] = text.pop("num_experts")
        text["tie_word_embeddings"] = True  # transformers writes its own default there; the top level is right
    vision = resaved["vision_config"]
    vision["model_type"] += "_vision"
    vision["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
    assert ModelConfig.from_json(resaved) == ModelConfig.from_json(hub_json(size))


YARN = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 262144}


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_yarn_is_read_as_the_models_readme_spells_it(spelling, kind):
    changed = hub_json("8B")
    text = changed["text_config"]
    scaling = text.pop("rope_scaling") | YARN
    text[spelling] = scaling | {kind: scaling.pop("rope_type")}
    rope = ModelConfig.from_json(changed).text.rope
    assert rope.yarn == YarnScaling(3.0, 262144)
    assert (rope.theta, rope.mrope_section) == (5_000_000, (24, 20, 20))


def test_rope_scaling_counts_where_it_was_added_to_what_transformers_5_saved():
    changed = hub_json("8B")
    text = changed["text_config"]
    text["rope_parameters"] = text["rope_scaling"] | {"rope_theta": text["rope_theta"]}
    text["rope_scaling"] = text["rope_scaling"] | YARN
    assert ModelConfig.from_json(changed).text.rope.yarn == YarnScaling(3.0, 262144)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("factor", None), ("factor", 0.5), ("factor", "3"), ("original_max_position_embeddings", None)),
        *(("attention_factor", -1.0), ("beta_fast", 0), ("truncate", "no"), ("partial_rotary_factor", 0.5)),
    ],
)
def test_a_wrong_field_of_yarn_is_named(key, value):
    changed = hub_json("8B")
    changed["text_config"]["rope_scaling"] |= YARN | {key: value}
    with pytest.raises(ModelConfigError) as caught:
        ModelConfig.from_json(changed)
    assert caught.value.field == f"text_config.rope_scaling.{key}"


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "longrope", "llama3", "proportional", "my-own"])
def test_other_ropes_are_refused_by_name(rope_type):
    changed = hub_json("8B")
    changed["text_config"]["rope_scaling"]["rope_type"] = rope_type
    with pytest.raises(ModelConfigError, match=f"{rope_type}.*'default' or 'yarn'"):
        ModelConfig.from_json(changed)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings"])
def test_what_nobody_would_read_alongside_text_config_is_refused(key):
    with pytest.raises(ModelConfigError, match="text_config") as caught:
        ModelConfig.from_json(hub_json("8B") | {key: YARN})
    assert caught.value.field == key


def test_sparse_layers_follow_step_and_exceptions():
    changed = hub_json("30B-A3B")
    changed["text_config"] |= {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    text = ModelConfig.from_json(changed).text
    assert [i for i in range(8) if text.layer_is_sparse(i)] == [1, 5, 7]
    assert not any(ModelConfig.from_json(hub_json("2B")).text.layer_is_sparse(i) for i in range(28))


REQUIRED = [
    *("text_config." + key for key in hub_json("235B-A22B")["text_config"]),
    *("vision_config." + key for key in hub_json("235B-A22B")["vision_config"]),
    *hub_json("235B-A22B"),
]
OPTIONAL = {
    *("architectures", "transformers_version", "vision_config.initializer_range", "vision_config.model_type"),
    *("text_config." + k for k in ("attention_bias", "attention_dropout", "bos_token_id", "eos_token_id")),
    *("text_config." + k for k in ("hidden_act", "initializer_range", "model_type", "norm_topk_prob", "use_cache")),
    "vision_config.hidden_act",
}


@pytest.mark.parametrize("field", [field for field in REQUIRED if field not in OPTIONAL])
def test_a_missing_field_is_named(field):
    broken = hub_json("235B-A22B")
    *section, key = field.split(".")
    del (broken[section[0]] if section else broken)[key]
    with pytest.raises(ModelConfigError) as caught:
        ModelConfig.from_json(broken)
    assert caught.value.field.split(".")[-1] == key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "qwen2_vl"),
        ("tie_word_embeddings", "yes"),
        ("image_token_id", 151936),
        ("text_config.hidden_size", 0),
        ("text_config.hidden_size", 4096.0),
        ("text_config.num_hidden_layers", True),
        ("text_config.num_hidden_layers", 10**9),
        ("text_config.num_key_value_heads", 7),
        ("text_config.num_experts_per_tok", 129),
        ("text_config.rms_norm_eps", -1e-6),
        ("text_config.rms_norm_eps", float("nan")),
        ("text_config.dtype", "int8"),
        ("architectures", "Qwen3VLForConditionalGeneration"),
        ("architectures", ["Qwen3VLMoeModel"]),
        ("architectures", ["Qwen3VLForConditionalGeneration"]),  # the dense one, and the type says MoE
        ("text_config.hidden_act", "gelu"),
        ("text_config.attention_bias", True),
        ("text_config.norm_topk_prob", False),
        ("text_config.mlp_only_layers", [-1]),
        ("text_config.rope_scaling.rope_type", "longrope"),
        ("text_config.rope_scaling.type", "mrope"),
        ("text_config.rope_scaling.type", "yarn"),  # and `rope_type` says "default"
        ("text_config.rope_scaling.mrope_section", [24, 20]),
        ("text_config.rope_scaling.mrope_section", [24, 20, 21]),
        ("text_config.rope_scaling.mrope_interleaved", False),
        ("vision_config.num_heads", 17),
        ("vision_config.num_position_embeddings", 2305),
        ("vision_config.deepstack_visual_indexes", [8, 16, 27]),
        ("vision_config.deepstack_visual_indexes", [8, 8, 24]),
        ("vision_config.out_hidden_size", 4095),
    ],
)
def test_a_wrong_value_is_named(field, value):
    broken = hub_json("235B-A22B")
    target = broken
    *sections, key = field.split(".")
    for section in sections:
        target = target[section]
    target[key] = value
    with pytest.raises(ModelConfigError) as caught:
        ModelConfig.from_json(broken)
    assert caught.value.field == field
    assert key in str(caught.value)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3", "llama", "qwen3_omni_moe", "qwen3_vl_text"])
def test_another_family_is_named(model_type):
    with pytest.raises(ModelConfigError, match=f"'{model_type}': a model of another family. This engine runs Qwen3-VL"):
        ModelConfig.from_json(hub_json("8B") | {"model_type": model_type})


@pytest.mark.parametrize("source", [b"", b"[]", b"{", b"\xff", "null", "[" * 100_000])
def test_what_is_no_json_object_is_refused(source):
    with pytest.raises(ModelConfigError):
        ModelConfig.from_json(source)


def test_reading_does_not_change_the_object():
    given = hub_json("8B")
    before = copy.deepcopy(given)
    ModelConfig.from_json(given)
    assert given == before
