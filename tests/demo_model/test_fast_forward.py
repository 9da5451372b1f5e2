"""The batched forward used in training computes what transformers computes, over the same parameters."""

from __future__ import annotations

import pytest
import torch

from training.batches import SequenceBuilder
from training.captions import captions
from training.checkpoint import build_model
from training.fast_forward import FastForward, grid_tables, patch_rows
from training.render import Renderer
from training.scenes import SceneSampler
from training.sprites import load_sprites
from training.tokenizer import build_tokenizer


@pytest.mark.parametrize("size", [(256, 256), (224, 320)])
def test_same_logits_as_transformers(size: tuple[int, int]) -> None:
    height, width = size
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=3).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(torch.randn_like(value) * (0.2 if "norm" in name else 0.03))
    sprites = load_sprites()
    generator = torch.Generator().manual_seed(5)
    scenes = SceneSampler(sprites, "train").sample(3, height, width, generator)
    pictures, _ = Renderer(sprites).draw(scenes, height, width, generator)
    builder = SequenceBuilder(tokenizer, seed=0)
    num_visual = height * width // 1024
    sequences = builder.build(scenes, num_visual, builder.random_prompts(3, generator))
    rows = patch_rows(pictures)
    fast = FastForward(model.config)
    parameters = dict(model.named_parameters())
    tables = grid_tables(model.config, height, width, "cpu")
    with torch.no_grad():
        pooled, levels = fast.vision(parameters, rows, tables)
        logits = fast.text(parameters, sequences, pooled, levels, tables.merged)
        both_frames = rows.view(-1, 3, 1, 256).expand(-1, -1, 2, -1).reshape(-1, 1536)
        image = tokenizer.token_to_id("<|image_pad|>")
        expected = model(
            input_ids=sequences.ids,
            pixel_values=both_frames,
            image_grid_thw=torch.tensor([[1, height // 16, width // 16]] * 3),
            mm_token_type_ids=(sequences.ids == image).int(),
        ).logits
    expected = expected.gather(1, sequences.predicts[..., None].expand_as(logits))
    wanted = sequences.target >= 0
    scale = expected[wanted].abs().max()
    assert scale > 0.5
    assert (logits - expected)[wanted].abs().max() < 1e-4 * max(1.0, scale)


def test_sequences_spell_the_captions() -> None:
    tokenizer = build_tokenizer()
    sprites = load_sprites()
    generator = torch.Generator().manual_seed(6)
    scenes = SceneSampler(sprites, "train").sample(300, 256, 256, generator)
    builder = SequenceBuilder(tokenizer, seed=0)
    sequences = builder.build(scenes, 64, builder.random_prompts(300, generator))
    for target, caption, valid in zip(sequences.target, captions(scenes), scenes.valid, strict=True):
        ids = target[target >= 0].tolist()
        assert ids == (tokenizer.encode(caption + "<|im_end|>").ids if valid else [])
