"""transformers' model of a checkpoint, of which only one part has its weights at a time.

All of it is made on the meta device. A part gets its tensors, computes, and gives them back. Decoder layers run in
transformers' own text model, which then has one layer, so that masks, rotations and DeepStack are its own too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.utils import logging

from export.parity.scenes import Scene, grid_rows
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import pixel_values
from stages.qwen3_vl.tensors import EMBED_TOKENS, FINAL_NORM, LM_HEAD, VISION_PREFIX, layer_prefix

Tensors = Mapping[str, Tensor]


class TowerStates(NamedTuple):
    """What went into and came out of each tower block `[N, width]`; rows `[R, H]` of the merger and of each level."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    rows: list[Tensor]


class Judge:
    """The model; every method wants the tensors of its part by hub name, and computes in their dtype."""

    def __init__(self, checkpoint: Path, config: ModelConfig) -> None:
        """Read the checkpoint's configuration, as transformers does."""
        logging.set_verbosity_error()
        hf_config = AutoConfig.from_pretrained(checkpoint)
        if hasattr(hf_config, "quantization_config"):
            del hf_config.quantization_config  # tensors come dequantised
        experts = {"experts_implementation": "eager"} if config.text.num_experts else {}
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(hf_config, attn_implementation="eager", **experts)
        self._config = config
        self._model: Any = model.eval()
        self._text, self._tower = self._model.model.language_model, self._model.model.visual
        # their tables of frequencies are no weights, so nobody would fill them
        self._text.rotary_emb = type(self._text.rotary_emb)(hf_config.text_config)
        self._tower.rotary_pos_emb = type(self._tower.rotary_pos_emb)(hf_config.vision_config)
        self._layers, self._norm = list(self._text.layers), self._text.norm

    def positions(self, scene: Scene) -> dict[str, Tensor]:
        """Return the positions int64 `[3, n]` of a scene's tokens, and by how much those after it are shifted."""
        inputs = {name: value for name, value in scene.inputs(self._config).items() if "pixel" not in name}
        positions, deltas = self._model.model.get_rope_index(**inputs)
        return {"position_ids": positions[:, 0], "rope_deltas": deltas.view(())}

    def run_tower(self, tensors: Tensors, scene: Scene) -> TowerStates:
        """Encode the visuals of a scene."""
        states = TowerStates([], [], [])

        def see(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            states.inputs.append(args[0] if args else kwargs["hidden_states"])
            states.outputs.append(output)

        hooks = [block.register_forward_hook(see, with_kwargs=True) for block in self._tower.blocks]
        pixels = pixel_values(scene.patch_rows(self._config), self._config.vision).to(dtype_of(tensors))
        with _filled(self._tower, VISION_PREFIX, tensors):
            found = self._tower(pixels, grid_thw=grid_rows(scene.grids))
        for hook in hooks:
            hook.remove()
        states.rows.extend((found.pooler_output, *found.deepstack_features))
        return states

    def embed(self, tensors: Tensors, scene: Scene, rows: Tensor | None) -> Tensor:
        """Return hidden states `[n, H]`: embeddings of the tokens, visual rows `[r, H]` in place of the pads'."""
        with _filled(self._text.embed_tokens, EMBED_TOKENS.removesuffix("weight"), tensors):
            embedded: Tensor = self._text.embed_tokens(scene.token_ids)
        return embedded if rows is None else embedded.masked_scatter(self._is_visual(scene)[:, None], rows)

    def run_layer(self, layer: int, tensors: Tensors, scene: Scene, hidden: Tensor, rows: Tensor | None) -> Tensor:
        """Return hidden states `[n, H]` behind a decoder layer; visual rows `[r, H]` where it has a DeepStack level."""
        self._text.layers, self._text.norm = nn.ModuleList([self._layers[layer]]), nn.Identity()
        with _filled(self._layers[layer], layer_prefix(layer), tensors):
            found = self._text(
                inputs_embeds=hidden[None],
                position_ids=scene.plan.positions.long()[:, None],
                visual_pos_masks=self._is_visual(scene)[None],
                deepstack_visual_embeds=None if rows is None else [rows],
                use_cache=False,
            )
        return found.last_hidden_state[0]  # type: ignore[no-any-return]

    def run_head(self, tensors: Tensors, hidden: Tensor) -> Tensor:
        """Return logits `[n, V]`."""
        head = {LM_HEAD: tensors[EMBED_TOKENS] if self._config.tie_word_embeddings else tensors[LM_HEAD]}
        norm, lm_head = FINAL_NORM.removesuffix("weight"), LM_HEAD.removesuffix("weight")
        with _filled(self._norm, norm, tensors), _filled(self._model.lm_head, lm_head, head):
            return self._model.lm_head(self._norm(hidden))  # type: ignore[no-any-return]

    def generate(self, tensors: Tensors, scene: Scene, num_tokens: int) -> list[Tensor]:
        """Return the logits `[V]` of each greedy token; `tensors` are all of the model's."""
        self._text.layers, self._text.norm = nn.ModuleList(self._layers), self._norm
        self._model.load_state_dict(dict(tensors), strict=False, assign=True)
        self._model.tie_weights()
        greedy = GenerationConfig(do_sample=False, max_new_tokens=num_tokens, pad_token_id=0)
        self._model.generation_config = greedy
        found = self._model.generate(
            **scene.inputs(self._config),
            generation_config=greedy,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return [logits[0] for logits in found.logits]

    def _is_visual(self, scene: Scene) -> Tensor:
        return (scene.token_ids == self._config.image_token_id) | (scene.token_ids == self._config.video_token_id)


@contextmanager
def _filled(module: nn.Module, prefix: str, tensors: Tensors) -> Iterator[None]:
    """Give a module its tensors, whose names begin with `prefix`, for the time being."""
    own = {name: tensors[prefix + name] for name, _ in module.named_parameters()}
    module.load_state_dict(own, assign=True)
    try:
        yield
    finally:
        for part in module.modules():  # buffers stay: they are no weights
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(parameter.to("meta"), requires_grad=False))


def dtype_of(tensors: Tensors) -> torch.dtype:
    """Return the dtype of a part's tensors."""
    return next(iter(tensors.values())).dtype
