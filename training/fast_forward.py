"""Qwen3-VL's forward for a batch of pictures of one size, over the parameters of transformers' model.

transformers runs the vision tower's attention picture by picture; here a batch is one call. The arithmetic is the same
(tests/demo_model compares both), the parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import Qwen3VLConfig

from training.batches import Sequences

Parameters = Mapping[str, torch.Tensor]
_VISION_BLOCK = [
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc1.bias",
    "mlp.linear_fc2.weight",
    "mlp.linear_fc2.bias",
]
_TEXT_LAYER = [
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
]


def patch_rows(pictures: torch.Tensor) -> torch.Tensor:
    """Cut pictures [B, 3, H, W] in 0..255 to rows [B, H/16 * W/16, 768] in merge-block order (one frame)."""
    num, channels, height, width = pictures.shape
    blocks = pictures.reshape(num, channels, height // 32, 2, 16, width // 32, 2, 16)
    return ((blocks - 127.5) / 127.5).permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(num, -1, channels * 256)


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return functional.linear(x, weight, bias)


def vision_block(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, w: list[torch.Tensor]
) -> torch.Tensor:
    """Compute one block on x [B, N, Hv]; cos, sin float32 [N, head_dim]."""
    num, length, width = x.shape
    y = functional.layer_norm(x, (width,), w[0], w[1], 1e-6)
    qkv = _linear(y, w[2], w[3]).view(num, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = qkv[0].float(), qkv[1].float()
    q = (q * cos + _rotate_half(q) * sin).to(x.dtype)
    k = (k * cos + _rotate_half(k) * sin).to(x.dtype)
    mixed = functional.scaled_dot_product_attention(q, k, qkv[2]).transpose(1, 2).reshape(num, length, width)
    x = x + _linear(mixed, w[4], w[5])
    y = functional.layer_norm(x, (width,), w[6], w[7], 1e-6)
    return x + _linear(functional.gelu(_linear(y, w[8], w[9]), approximate="tanh"), w[10], w[11])


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def text_layer(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, w: list[torch.Tensor]) -> torch.Tensor:
    """Compute one decoder layer on x [B, L, H]; cos, sin [B, 1, L, 128] in x's dtype; causal over right-padded rows."""
    num, length, _ = x.shape
    y = _rms_norm(x, w[0])
    q = _rms_norm(_linear(y, w[1]).view(num, length, -1, 128), w[5]).transpose(1, 2)
    k = _rms_norm(_linear(y, w[2]).view(num, length, -1, 128), w[6]).transpose(1, 2)
    v = _linear(y, w[3]).view(num, length, -1, 128).transpose(1, 2)
    q = q * cos + _rotate_half(q) * sin
    k = k * cos + _rotate_half(k) * sin
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + _linear(mixed.transpose(1, 2).reshape(num, length, -1), w[4])
    y = _rms_norm(x, w[7])
    return x + _linear(functional.silu(_linear(y, w[8])) * _linear(y, w[9]), w[10])


def merge_rows(x: torch.Tensor, w: list[torch.Tensor], norm_after_grouping: bool) -> torch.Tensor:
    """Merge patches: x [B, N, Hv] to [B, N/4, H]."""
    num, length, width = x.shape
    norm_width = width * 4 if norm_after_grouping else width
    y = x.view(num, length // 4, width * 4) if norm_after_grouping else x
    y = functional.layer_norm(y, (norm_width,), w[0], w[1], 1e-6).reshape(num, length // 4, width * 4)
    return _linear(functional.gelu(_linear(y, w[2], w[3])), w[4], w[5])


@dataclass(frozen=True, slots=True)
class GridTables:
    """What depends on the picture size only; N patches.

    index, weight: [N, 4], corners in the position table. cos, sin: float32 [N, head_dim].
    merged: rows and columns of visual tokens.
    """

    index: torch.Tensor
    weight: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    merged: tuple[int, int]


def grid_tables(config: Qwen3VLConfig, height: int, width: int, device: torch.device | str) -> GridTables:
    """Make tables for pictures of `height` x `width` pixels."""
    vision = config.vision_config
    side = int(vision.num_position_embeddings**0.5)
    rows, columns = height // 16, width // 16
    r = torch.arange(rows).view(rows // 2, 1, 2, 1).expand(-1, columns // 2, -1, 2).reshape(-1)
    c = torch.arange(columns).view(1, columns // 2, 1, 2).expand(rows // 2, -1, 2, -1).reshape(-1)
    corners, weights = [], []
    at_r, at_c = r * ((side - 1) / (rows - 1)), c * ((side - 1) / (columns - 1))
    for near_r in (True, False):
        for near_c in (True, False):
            y = at_r.floor() if near_r else (at_r.floor() + 1).clamp(max=side - 1)
            x = at_c.floor() if near_c else (at_c.floor() + 1).clamp(max=side - 1)
            share_r = 1 - at_r.frac() if near_r else at_r.frac()
            share_c = 1 - at_c.frac() if near_c else at_c.frac()
            corners.append((y * side + x).long())
            weights.append(share_r * share_c)
    head_dim = vision.hidden_size // vision.num_heads
    frequency = 10000.0 ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    angle = torch.cat([r[:, None] * frequency, c[:, None] * frequency], dim=1).repeat(1, 2)
    tables = (torch.stack(corners, 1), torch.stack(weights, 1), angle.cos(), angle.sin())
    return GridTables(*(table.to(device) for table in tables), merged=(rows // 2, columns // 2))


def text_angles(sequences: Sequences, merged: tuple[int, int]) -> torch.Tensor:
    """Return interleaved M-RoPE angles float32 [B, L, 128] of sequences with one picture each."""
    rows, columns = merged
    num_visual = rows * columns
    position = torch.arange(sequences.ids.shape[1], device=sequences.ids.device)[None]
    start = sequences.visual_start[:, None]
    inside = position - start
    visual = (inside >= 0) & (inside < num_visual)
    plain = torch.where(inside < 0, position, position - num_visual + max(rows, columns))
    axes = (start.expand_as(plain), start + inside // columns, start + inside % columns)
    t, h, w = (torch.where(visual, axis, plain).float()[..., None] for axis in axes)
    j = torch.arange(64, device=position.device)
    frequency = 5e6 ** (-j.float() / 64)
    chosen = torch.where((j % 3 == 1) & (j < 60), h, torch.where((j % 3 == 2) & (j < 60), w, t))
    return (chosen * frequency).repeat(1, 1, 2)


class FastForward:
    """Logits of the captions; `wrap` is applied to the repeated pieces (torch.compile, or nothing)."""

    def __init__(self, config: Qwen3VLConfig, wrap: Callable[[Callable], Callable] = lambda piece: piece) -> None:
        """Compute a model of `config`; `wrap` is applied to each piece, as `torch.compile` is."""
        self._config = config
        self._vision_block, self._text_layer, self._merge = wrap(vision_block), wrap(text_layer), wrap(merge_rows)

    def vision(self, p: Parameters, rows: torch.Tensor, tables: GridTables) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return pooled rows [B, N/4, H] and the DeepStack rows of each level, from patch rows [B, N, 768]."""
        vision = self._config.vision_config
        prefix = "model.visual."
        both_frames = p[f"{prefix}patch_embed.proj.weight"].sum(2).flatten(1)
        x = _linear(rows.to(both_frames.dtype), both_frames, p[f"{prefix}patch_embed.proj.bias"])
        position = (p[f"{prefix}pos_embed.weight"][tables.index] * tables.weight[..., None]).sum(1)
        x = x + position.to(x.dtype)
        levels = []
        for number in range(vision.depth):
            weights = [p[f"{prefix}blocks.{number}.{name}"] for name in _VISION_BLOCK]
            x = self._vision_block(x, tables.cos, tables.sin, vision.num_heads, weights)
            if number in vision.deepstack_visual_indexes:
                levels.append(self._merged(p, f"{prefix}deepstack_merger_list.{len(levels)}.", x, after=True))
        return self._merged(p, f"{prefix}merger.", x, after=False), levels

    def _merged(self, p: Parameters, prefix: str, x: torch.Tensor, *, after: bool) -> torch.Tensor:
        names = [f"{layer}.{part}" for layer in ("norm", "linear_fc1", "linear_fc2") for part in ("weight", "bias")]
        return self._merge(x, [p[prefix + name] for name in names], after)

    def text(
        self,
        p: Parameters,
        sequences: Sequences,
        pooled: torch.Tensor,
        levels: list[torch.Tensor],
        merged: tuple[int, int],
    ) -> torch.Tensor:
        """Return logits [B, C, vocab] at the positions that predict the caption."""
        prefix = "model.language_model."
        table = p[f"{prefix}embed_tokens.weight"]
        num, num_visual, width = pooled.shape
        where = sequences.visual_start[:, None] + torch.arange(num_visual, device=pooled.device)
        where = where[..., None].expand(num, num_visual, width)
        x = table[sequences.ids].scatter(1, where, pooled)
        angle = text_angles(sequences, merged)[:, None]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for number in range(self._config.text_config.num_hidden_layers):
            weights = [p[f"{prefix}layers.{number}.{name}"] for name in _TEXT_LAYER]
            x = self._text_layer(x, cos, sin, weights)
            if number < len(levels):
                x = x.scatter_add(1, where, levels[number])
        x = x.gather(1, sequences.predicts[..., None].expand(-1, -1, width))
        return _linear(_rms_norm(x, p[f"{prefix}norm.weight"]), table)
