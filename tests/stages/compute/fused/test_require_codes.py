"""Which GPUs and models can hold keys and values in FP8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from broker_pipeline.errors import ConfigurationError
from export.synthetic.shapes import shape_config
from stages.compute.fused import loading
from stages.compute.fused.loading import require_codes


@pytest.mark.parametrize(
    ("has_fp8", "head_dim", "words"), [(False, 128, "cpu has no FP8"), (True, 16, "a head_dim of 32 for it, not 16")]
)
def test_what_cannot_be_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, has_fp8: bool, head_dim: int, words: str
) -> None:
    monkeypatch.setattr(loading, "has_fp8_numbers", lambda _: has_fp8)
    text, device = shape_config("8B").text, torch.device("cpu")
    with pytest.raises(ConfigurationError, match=f"{words}.*--attention sdpa") as caught:
        require_codes(replace(text, head_dim=head_dim), device)
    assert caught.value.field == "kv_dtype"
    monkeypatch.setattr(loading, "has_fp8_numbers", lambda _: True)
    require_codes(replace(text, head_dim=32), device)
