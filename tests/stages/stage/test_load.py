"""What settings of a stage say is what is loaded."""

from __future__ import annotations

import pytest
import torch

from broker_pipeline.config import CommonSettings
from stages.cached_heads import HeadCodes
from stages.stage.service import load
from stages.worker.settings import StageSettings
from tests.kit.models.tiny_artifacts import tiny_artifact


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_a_stage_holds_keys_and_values_as_it_was_told(kv_dtype: str) -> None:
    settings = StageSettings(model=str(tiny_artifact()), device="cpu", blocks="0:2", kv_tokens=8, kv_dtype=kv_dtype)
    kv = load(settings, CommonSettings()).compute.kv
    for heads in (kv.keys(0), kv.values(1)):
        assert isinstance(heads, HeadCodes if kv_dtype == "fp8" else torch.Tensor)
