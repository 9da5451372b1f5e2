from __future__ import annotations

import pytest
import torch

from broker_pipeline.errors import ConfigurationError
from export.synthetic.random_checkpoint import random_hf_config
from stages.compute.kv import capacity
from stages.compute.kv.cache import KVCache
from stages.compute.kv.capacity import default_kv_tokens, kv_token_bytes
from stages.qwen3_vl.config import ModelConfig

HELD = ("codes", "scales")
CPU = torch.device("cpu")


def test_a_token_takes_keys_and_values_of_each_layer() -> None:
    config = ModelConfig.from_json(random_hf_config(moe=False, tied=True, num_layers=6, dtype=torch.float32))
    assert kv_token_bytes(config.text, 2, torch.float32) == 2 * 2 * 2 * 32 * 4
    in_fp8 = KVCache(2, 1, 2, 32, torch.float32, CPU, in_fp8=True)
    held = [getattr(of(layer), name) for of in (in_fp8.keys, in_fp8.values) for layer in (0, 1) for name in HELD]
    assert 2 * kv_token_bytes(config.text, 2, torch.float32, in_fp8=True) == sum(each.nbytes for each in held)


def test_capacity_follows_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "free_bytes", lambda _: 2**30)
    assert default_kv_tokens(2**16, CPU) == 4096
    assert default_kv_tokens(2**16, CPU, share=0.5) == 8192
    assert default_kv_tokens(16, CPU) == 65_536
    assert default_kv_tokens(2**16, torch.device("cuda:0")) == int(0.8 * 2**30) // 2**16
    assert default_kv_tokens(16, torch.device("cuda:0")) == 2**20
    assert default_kv_tokens(2**16, torch.device("cuda:0"), reserved_bytes=2**29) == int(0.8 * 2**29) // 2**16
    with pytest.raises(ConfigurationError, match="fewer blocks"):
        default_kv_tokens(2**24, CPU)
