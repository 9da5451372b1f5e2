"""The kernel's cosines and sines of positions on three axes, plain and stretched by YaRN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from export.synthetic.shapes import shape_config
from stages.kernels.rotation import rotation
from stages.qwen3_vl.rope import TextRope, text_rotation
from stages.qwen3_vl.rope_config import YarnScaling


@pytest.mark.parametrize("yarn", [None, YarnScaling(3.0, 64), YarnScaling(2.0, 262144, attention_factor=1.5)])
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_tables_are_those_of_the_reference(device: torch.device, num_tokens: int, yarn: YarnScaling | None) -> None:
    text = shape_config("8B").text
    rope = TextRope.of(replace(text, rope=replace(text.rope, yarn=yarn)), device)
    generator = torch.Generator().manual_seed(num_tokens)
    positions = torch.randint(0, 5000, (3, num_tokens), generator=generator, dtype=torch.int32).to(device)
    axes = (positions[0], positions[1], positions[2])
    found = rotation(axes, rope.frequencies, rope.axes, rope.scale, torch.float32)
    for table, expected in zip(found, text_rotation(positions, rope, torch.float32), strict=True):
        torch.testing.assert_close(table, expected, atol=2e-4, rtol=0)
        assert table.shape == (num_tokens, 1, text.head_dim)
