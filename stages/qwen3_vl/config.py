"""The architecture of one Qwen3-VL model, read from its `config.json`.

Nothing is assumed: a value that the checkpoint does not state is an error that names the field, because the
defaults of other programs are not this model's (rope_theta and the tied head differ, for instance). Two
spellings are read: the one that the hub's files use (`rope_scaling`, `num_experts`) and the one that
transformers 5 writes (`rope_parameters`, `num_local_experts`, `dtype`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker_pipeline.errors import ModelConfigError
from stages.qwen3_vl.config_fields import Fields
from stages.qwen3_vl.text_config import TextConfig
from stages.qwen3_vl.vision_config import VisionConfig

DENSE_MODEL_TYPE = "qwen3_vl"
MOE_MODEL_TYPE = "qwen3_vl_moe"
ARCHITECTURES = {
    DENSE_MODEL_TYPE: "Qwen3VLForConditionalGeneration",
    MOE_MODEL_TYPE: "Qwen3VLMoeForConditionalGeneration",
}
SUPPORTED_DTYPES = ("bfloat16", "float32")
STORED_DTYPES = (*SUPPORTED_DTYPES, "float16")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The whole model; `dtype` is the checkpoint's own, of `STORED_DTYPES`; float16 is converted by an export."""

    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...]
    dtype: str

    @classmethod
    def from_json(cls, source: bytes | str | Mapping[str, Any]) -> ModelConfig:
        """Read `config.json`, given as its bytes, its text or the parsed object.

        Raises:
            ModelConfigError: names the field that is missing, of a wrong type or out of range.
        """
        top = Fields.from_json(source, file="config.json", path="")
        model_type = _read_model_type(top)
        text_fields, vision_fields = top.section("text_config"), top.section("vision_config")
        _check_places(top, text_fields)
        config = cls(
            text=TextConfig.read(text_fields, moe=model_type == MOE_MODEL_TYPE),
            vision=VisionConfig.read(vision_fields),
            tie_word_embeddings=_read_tie(top, text_fields),
            image_token_id=top.integer("image_token_id"),
            video_token_id=top.integer("video_token_id"),
            vision_start_token_id=top.integer("vision_start_token_id"),
            vision_end_token_id=top.integer("vision_end_token_id"),
            eos_token_ids=_read_eos(top, text_fields),
            dtype=_read_dtype(top, text_fields),
        )
        _check_together(config)
        return config


def _read_model_type(top: Fields) -> str:
    model_type = top.text("model_type")
    if model_type not in ARCHITECTURES:
        raise ModelConfigError(
            f"model_type is {model_type!r}: a model of another family. This engine runs Qwen3-VL alone "
            f"({' and '.join(ARCHITECTURES)}).",
            field="model_type",
        )
    whole = ARCHITECTURES[model_type]
    if top.has("architectures") and top.texts("architectures") != (whole,):
        raise top.error("architectures", f"[{whole!r}], the whole model with the head that writes text; save that one")
    return model_type


def _check_places(top: Fields, text: Fields) -> None:
    """Refuse fields of the decoder that stand outside its section: nobody would read them."""
    for key in ("rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings"):
        if top.has(key) and not top.agrees(key, text):
            raise top.error(key, f"it in text_config, where {text.name(key)} would be read")


def _read_tie(top: Fields, text: Fields) -> bool:
    # The top level decides: a re-saved MoE checkpoint carries a wrong `true` in text_config.
    return top.flag("tie_word_embeddings") if top.has("tie_word_embeddings") else text.flag("tie_word_embeddings")


def _read_eos(top: Fields, text: Fields) -> tuple[int, ...]:
    for fields in (text, top):
        if fields.has("eos_token_id"):
            return fields.integers("eos_token_id")
    return ()


def _read_dtype(top: Fields, text: Fields) -> str:
    for fields in (top, text):
        for key in ("dtype", "torch_dtype"):
            if fields.has(key):
                dtype = fields.text(key)
                if dtype not in STORED_DTYPES:
                    raise fields.error(key, " or ".join(STORED_DTYPES))
                return dtype
    raise text.error("dtype", " or ".join(STORED_DTYPES))


def _check_together(config: ModelConfig) -> None:
    """Check what no single field shows."""
    text, vision = config.text, config.vision
    _check(text.num_heads % text.num_kv_heads == 0, "text_config.num_key_value_heads", "a divisor of the heads")
    _check(text.head_dim % 2 == 0, "text_config.head_dim", "an even number")
    _check(
        sum(text.rope.mrope_section) == text.head_dim // 2,
        "text_config.rope_scaling.mrope_section",
        f"three sections that add up to half of head_dim, {text.head_dim // 2}",
    )
    _check(vision.out_hidden_size == text.hidden_size, "vision_config.out_hidden_size", "text_config.hidden_size")
    levels = vision.num_deepstack_levels
    _check(levels <= text.num_layers, "vision_config.deepstack_visual_indexes", "one per layer")
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        _check(getattr(config, name) < text.vocab_size, name, f"below vocab_size, {text.vocab_size}")
    _check(max(config.eos_token_ids, default=0) < text.vocab_size, "eos_token_id", "below vocab_size")


def _check(holds: bool, field: str, expected: str) -> None:
    if not holds:
        raise ModelConfigError(f"{field} does not fit the rest of the configuration; expected {expected}", field=field)
