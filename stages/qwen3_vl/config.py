"""The architecture of one Qwen3-VL model, read from its `config.json`.

Nothing is assumed: a value that the checkpoint does not state is an error that names the field, because the
defaults of other programs are not this model's (rope_theta and the tied head differ, for instance). Two
spellings are read: the one that the hub's files use (`rope_scaling`, `num_experts`) and the one that
transformers 5 writes (`rope_parameters`, `num_local_experts`, `dtype`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from broker_pipeline.errors import ModelConfigError
from stages.qwen3_vl.config_fields import Fields

DENSE_MODEL_TYPE = "qwen3_vl"
MOE_MODEL_TYPE = "qwen3_vl_moe"
SUPPORTED_DTYPES = ("bfloat16", "float32")
VISION_ROPE_THETA = 10000.0
VISION_LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The decoder. `num_experts` is 0 for a dense model, and then the other MoE counts are 0 too."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    mlp_only_layers: tuple[int, ...]
    decoder_sparse_step: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    vocab_size: int
    max_position_embeddings: int

    @property
    def is_moe(self) -> bool:
        """Whether the model has experts at all."""
        return self.num_experts > 0

    def layer_is_sparse(self, layer: int) -> bool:
        """Say whether decoder layer `layer` (from 0) routes to experts rather than through one MLP."""
        if not self.is_moe or layer in self.mlp_only_layers:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower. Sizes of patches are in pixels, `temporal_patch_size` in frames."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int
    num_position_embeddings: int
    deepstack_indexes: tuple[int, ...]
    rope_theta: float = VISION_ROPE_THETA

    @property
    def num_deepstack_levels(self) -> int:
        """How many decoder layers, from layer 0 on, receive visual rows of their own."""
        return len(self.deepstack_indexes)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def position_grid_side(self) -> int:
        """The learned position table is a square of this many cells a side."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def patch_values(self) -> int:
        """Values of one flattened patch row: channels x frames x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size

    @property
    def merge_factor(self) -> int:
        """How many patch rows become one visual token."""
        return self.spatial_merge_size * self.spatial_merge_size

    @property
    def merged_size(self) -> int:
        """Channels of one merged group of patches before the projection to the text width."""
        return self.hidden_size * self.merge_factor

    @property
    def pixel_factor(self) -> int:
        """Heights and widths of resized pictures are multiples of this many pixels."""
        return self.patch_size * self.spatial_merge_size


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The whole model; `dtype` is "bfloat16" or "float32", the checkpoint's own."""

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
        top = Fields(_parse(source), "")
        model_type = top.text("model_type")
        if model_type not in {DENSE_MODEL_TYPE, MOE_MODEL_TYPE}:
            raise ModelConfigError(
                f"model_type is {model_type!r}; expected {DENSE_MODEL_TYPE!r} or {MOE_MODEL_TYPE!r}",
                field="model_type",
            )
        text_fields, vision_fields = top.section("text_config"), top.section("vision_config")
        config = cls(
            text=_read_text(text_fields, moe=model_type == MOE_MODEL_TYPE),
            vision=_read_vision(vision_fields),
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


def _parse(source: bytes | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    try:
        parsed = orjson.loads(source)
    except ValueError as error:
        raise ModelConfigError(f"config.json is not valid JSON: {error}", field="config.json") from error
    if not isinstance(parsed, dict):
        raise ModelConfigError("config.json is not a JSON object", field="config.json")
    return parsed


def _read_text(fields: Fields, *, moe: bool) -> TextConfig:
    fields.require("hidden_act", "silu")
    fields.require("attention_bias", allowed=False)
    rope_theta, mrope_section = _read_rope(fields)
    return TextConfig(
        hidden_size=fields.positive("hidden_size"),
        num_layers=fields.positive("num_hidden_layers"),
        num_heads=fields.positive("num_attention_heads"),
        num_kv_heads=fields.positive("num_key_value_heads"),
        head_dim=fields.positive("head_dim"),
        intermediate_size=fields.positive("intermediate_size"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope_theta=rope_theta,
        mrope_section=mrope_section,
        vocab_size=fields.positive("vocab_size"),
        max_position_embeddings=fields.positive("max_position_embeddings"),
        **(_read_experts(fields) if moe else _NO_EXPERTS),
    )


_NO_EXPERTS: dict[str, Any] = {
    "num_experts": 0,
    "num_experts_per_tok": 0,
    "moe_intermediate_size": 0,
    "mlp_only_layers": (),
    "decoder_sparse_step": 1,
}


def _read_experts(fields: Fields) -> dict[str, Any]:
    fields.require("norm_topk_prob", allowed=True)
    count_key = "num_local_experts" if fields.has("num_local_experts") else "num_experts"
    num_experts, per_token = fields.positive(count_key), fields.positive("num_experts_per_tok")
    if per_token > num_experts:
        raise fields.error("num_experts_per_tok", f"at most {fields.name(count_key)}, {num_experts}")
    return {
        "num_experts": num_experts,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": fields.positive("moe_intermediate_size"),
        "mlp_only_layers": fields.integers("mlp_only_layers"),
        "decoder_sparse_step": fields.positive("decoder_sparse_step"),
    }


def _read_rope(fields: Fields) -> tuple[float, tuple[int, int, int]]:
    """Return the base and the sections of the three axes; the hub keeps `rope_theta` alongside `rope_scaling`."""
    rope = fields.section("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    rope.require("rope_type", "default")
    rope.require("type", "default")
    rope.require("mrope_interleaved", allowed=True)
    theta = rope.number("rope_theta") if rope.has("rope_theta") else fields.number("rope_theta")
    section = rope.integers("mrope_section")
    if len(section) != 3:
        raise rope.error("mrope_section", "three integers: time, height, width")
    return theta, (section[0], section[1], section[2])


def _read_vision(fields: Fields) -> VisionConfig:
    fields.require("hidden_act", "gelu_pytorch_tanh")
    vision = VisionConfig(
        depth=fields.positive("depth"),
        hidden_size=fields.positive("hidden_size"),
        num_heads=fields.positive("num_heads"),
        intermediate_size=fields.positive("intermediate_size"),
        out_hidden_size=fields.positive("out_hidden_size"),
        patch_size=fields.positive("patch_size"),
        temporal_patch_size=fields.positive("temporal_patch_size"),
        spatial_merge_size=fields.positive("spatial_merge_size"),
        in_channels=fields.positive("in_channels"),
        num_position_embeddings=fields.positive("num_position_embeddings"),
        deepstack_indexes=fields.integers("deepstack_visual_indexes"),
        rope_theta=_read_vision_rope(fields),
    )
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise fields.error("num_heads", "a divisor of hidden_size that leaves heads of a multiple of 4")
    if vision.position_grid_side**2 != vision.num_position_embeddings:
        raise fields.error("num_position_embeddings", "a square number")
    indexes = vision.deepstack_indexes
    if len(set(indexes)) != len(indexes) or any(index >= vision.depth for index in indexes):
        raise fields.error("deepstack_visual_indexes", f"different block indexes below depth, {vision.depth}")
    return vision


def _read_vision_rope(fields: Fields) -> float:
    """Read what the hub's files are silent about and transformers 5 writes out."""
    if not fields.has("rope_parameters"):
        return VISION_ROPE_THETA
    rope = fields.section("rope_parameters")
    rope.require("rope_type", "axial")
    return rope.number("rope_theta")


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
                if dtype not in SUPPORTED_DTYPES:
                    # float16 overflows: vision activations exceed its range
                    raise fields.error(key, " or ".join(SUPPORTED_DTYPES))
                return dtype
    raise text.error("dtype", " or ".join(SUPPORTED_DTYPES))


def _check_together(config: ModelConfig) -> None:
    """Check what no single field shows."""
    text, vision = config.text, config.vision
    _check(text.num_heads % text.num_kv_heads == 0, "text_config.num_key_value_heads", "a divisor of the heads")
    _check(text.head_dim % 2 == 0, "text_config.head_dim", "an even number")
    _check(
        sum(text.mrope_section) == text.head_dim // 2,
        "text_config.rope_scaling.mrope_section",
        f"three sections that add up to half of head_dim, {text.head_dim // 2}",
    )
    _check(vision.out_hidden_size == text.hidden_size, "vision_config.out_hidden_size", "text_config.hidden_size")
    _check(
        vision.num_deepstack_levels <= text.num_layers,
        "vision_config.deepstack_visual_indexes",
        "one per layer",
    )
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        _check(getattr(config, name) < text.vocab_size, name, f"below vocab_size, {text.vocab_size}")
    _check(max(config.eos_token_ids, default=0) < text.vocab_size, "eos_token_id", "below vocab_size")


def _check(holds: bool, field: str, expected: str) -> None:
    if not holds:
        raise ModelConfigError(f"{field} does not fit the rest of the configuration; expected {expected}", field=field)
