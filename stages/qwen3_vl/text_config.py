"""The decoder's part of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.qwen3_vl.config_fields import Fields
from stages.qwen3_vl.rope_config import RopeConfig

_NO_EXPERTS: dict[str, Any] = {
    "num_experts": 0,
    "num_experts_per_tok": 0,
    "moe_intermediate_size": 0,
    "mlp_only_layers": (),
    "decoder_sparse_step": 1,
}

_MAX_LAYERS = 4096
"""Beyond any model: a damaged number must not have names made for a billion layers."""


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
    rope: RopeConfig
    vocab_size: int
    max_position_embeddings: int

    @classmethod
    def read(cls, fields: Fields, *, moe: bool) -> TextConfig:
        """Read the section `text_config`.

        Raises:
            ModelConfigError: names the field that is missing, of a wrong type or out of range.
        """
        fields.require("hidden_act", "silu")
        fields.require("attention_bias", allowed=False)
        return cls(
            hidden_size=fields.positive("hidden_size"),
            num_layers=fields.integer("num_hidden_layers", minimum=1, maximum=_MAX_LAYERS),
            num_heads=fields.positive("num_attention_heads"),
            num_kv_heads=fields.positive("num_key_value_heads"),
            head_dim=fields.positive("head_dim"),
            intermediate_size=fields.positive("intermediate_size"),
            rms_norm_eps=fields.number("rms_norm_eps"),
            rope=RopeConfig.read(fields),
            vocab_size=fields.positive("vocab_size"),
            max_position_embeddings=fields.positive("max_position_embeddings"),
            **(_read_experts(fields) if moe else _NO_EXPERTS),
        )

    @property
    def is_moe(self) -> bool:
        """Whether the model has experts at all."""
        return self.num_experts > 0

    def layer_is_sparse(self, layer: int) -> bool:
        """Say whether decoder layer `layer` (from 0) routes to experts rather than through one MLP."""
        if not self.is_moe or layer in self.mlp_only_layers:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0


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
