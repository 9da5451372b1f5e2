"""The parts of a model as our workers compute them, each fed with what the judge had before it.

In plain torch with eager attention, which rounds where transformers' eager attention does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.workers import BlockRange
from export.parity.judge import Tensors, TowerStates
from export.parity.part import Pair
from export.parity.scenes import Scene
from stages.compute.eager.decoder import EagerDecoder, StageWeights
from stages.compute.generate import Request, WholeModel
from stages.compute.kv.cache import KVCache
from stages.compute.loading import load_stage, load_vision
from stages.compute.microbatch import Microbatch, key_of
from stages.compute.options import ComputeOptions
from stages.compute.visual_injection import VisualInjection
from stages.qwen3_vl.attention import EagerAttention
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import EMBED_TOKENS, FINAL_NORM, LM_HEAD, layer_prefix, stage_shapes, vision_shapes
from stages.qwen3_vl.text import BlockWeights, rms_norm
from stages.qwen3_vl.vision import VisionTower
from stages.qwen3_vl.vision_places import BatchPlaces

if TYPE_CHECKING:  # Triton is only where CUDA is
    from stages.kernels.codes.row_codes import Rows

_OPTIONS = ComputeOptions(attention="eager")


class _SteppedTower(VisionTower):
    """The tower as it is, but every block gets what the judge's got, and what it makes of it is kept."""

    judged: TowerStates
    made: list[Tensor]

    def _block(self, block: int, x: Tensor, normed: Rows, places: BatchPlaces) -> tuple[Tensor, Rows]:  # noqa: ARG002
        if block == 0:
            self.made = [x]
        given, onward = self.judged.inputs[block], self.judged.outputs[block]
        ours, _ = super()._block(block, given, self._norm(f"blocks.{block}.norm1", given), places)
        self.made.append(ours)
        following = f"blocks.{block + 1}.norm1" if block + 1 < self.config.depth else "merger.norm"
        return onward, self._norm(following, onward)


def run_tower(config: ModelConfig, tensors: Tensors, scene: Scene, judged: TowerStates) -> dict[str, Pair]:
    """Return what each part of the tower makes of what the judge's got, next to what the judge's made."""
    tower = _SteppedTower(config, tensors, EagerAttention())
    tower.judged = judged
    encoded = tower.encode(scene.patch_rows(config), scene.grids)
    taps = config.vision.deepstack_indexes
    names = ["patch_embed", *(f"blocks.{block}" for block in range(config.vision.depth)), "merger"]
    names += [f"deepstack_merger_list.{taps.index(block)}" for block in sorted(taps)]
    ours = (*tower.made, encoded.embeds, *encoded.levels)
    theirs = (judged.inputs[0], *judged.outputs, *judged.rows)
    return {f"visual.{name}": pair for name, pair in zip(names, zip(ours, theirs, strict=True), strict=True)}


def embed(tensors: Tensors, scene: Scene, rows: Tensor | None) -> Tensor:
    """Return hidden states `[n, H]` as they enter layer 0; visual rows `[r, H]` where there are visuals."""
    embedded = F.embedding(scene.token_ids, tensors[EMBED_TOKENS])
    return embedded if rows is None else VisualInjection(scene.visual_places, rows, {}).replace(embedded)


def run_layer(
    config: ModelConfig, layer: int, tensors: Tensors, scene: Scene, hidden: Tensor, rows: Tensor | None
) -> Tensor:
    """Return hidden states `[n, H]` behind a decoder layer; `rows` `[r, H]` where it has a DeepStack level."""
    text, num_tokens = config.text, len(hidden)
    kv = KVCache(1, num_tokens, text.num_kv_heads, text.head_dim, hidden.dtype, hidden.device)
    segment = Segment(session=scene.name, attempt=1, start=0, count=num_tokens)
    kv.reserve(key_of(segment), num_tokens)
    block = BlockWeights.from_tensors(tensors, layer_prefix(layer), sparse=text.layer_is_sparse(layer))
    decoder = EagerDecoder(text, layer, StageWeights((block,)), kv=kv, attention=EagerAttention())
    injection = None if rows is None else VisualInjection(scene.visual_places, None, {layer: rows})
    return decoder.forward(Microbatch((segment,), scene.plan.positions, hidden=hidden), injection)


def run_head(config: ModelConfig, tensors: Tensors, hidden: Tensor) -> Tensor:
    """Return logits `[n, V]`."""
    head = tensors[EMBED_TOKENS if config.tie_word_embeddings else LM_HEAD]
    return F.linear(rms_norm(hidden, tensors[FINAL_NORM], config.text.rms_norm_eps), head)


def generate(config: ModelConfig, tensors: Tensors, scene: Scene, num_tokens: int) -> list[int]:
    """Return greedy tokens, all by one stage that holds every layer."""
    own = {name: tensors[name] for name in stage_shapes(config, 0, config.text.num_layers)}
    capacity = len(scene.prompt.token_ids) + num_tokens
    blocks = BlockRange(start=0, stop=config.text.num_layers)
    stage = load_stage(config, blocks, own, kv_capacity_tokens=capacity, options=_OPTIONS)
    visuals = None
    if scene.visuals:
        tower = load_vision(config, {name: tensors[name] for name in vision_shapes(config)}, _OPTIONS)
        visuals = tower.encode(scene.patch_rows(config), scene.grids)
    request = Request(scene.name, scene.prompt.token_ids, scene.prompt.groups, visuals, max_tokens=num_tokens)
    [tokens] = WholeModel([stage]).generate([request])
    return [token.token_id for token in tokens]
