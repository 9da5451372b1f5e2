from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_pipeline.errors import ConfigurationError
from export.synthetic.random_checkpoint import random_hf_config
from stages.compute.kv import kv_capacity
from stages.compute.kv.kv_capacity import default_kv_tokens, kv_token_bytes
from stages.device.device import choose_device, choose_dtype, free_bytes, require_compiler
from stages.qwen3_vl.config import ModelConfig

CPU = torch.device("cpu")


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in {"cpu", "cuda"}
    assert free_bytes(CPU) > 2**20


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "meta", ""])
def test_devices_that_are_not_here_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        choose_device(name)
    assert refusal.value.field == "device"


def test_auto_dtype_is_that_of_the_artifact() -> None:
    assert choose_dtype("auto", torch.bfloat16) is torch.bfloat16
    assert choose_dtype("float32", torch.bfloat16) is torch.float32


def test_a_token_takes_keys_and_values_of_each_layer() -> None:
    config = ModelConfig.from_json(random_hf_config(moe=False, tied=True, num_layers=6, dtype=torch.float32))
    assert kv_token_bytes(config.text, 2, torch.float32) == 2 * 2 * 2 * 32 * 4


def test_capacity_follows_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_capacity, "free_bytes", lambda _: 2**30)
    assert default_kv_tokens(2**16, CPU) == 4096
    assert default_kv_tokens(2**16, CPU, share=0.5) == 8192
    assert default_kv_tokens(16, CPU) == 65_536
    assert default_kv_tokens(2**16, torch.device("cuda:0")) == int(0.8 * 2**30) // 2**16
    assert default_kv_tokens(16, torch.device("cuda:0")) == 2**20
    assert default_kv_tokens(2**16, torch.device("cuda:0"), reserved_bytes=2**29) == int(0.8 * 2**29) // 2**16
    with pytest.raises(ConfigurationError, match="fewer blocks"):
        default_kv_tokens(2**24, CPU)


def test_kernels_need_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="C compiler") as refused:
        require_compiler()
    assert refused.value.field == "attention"
    monkeypatch.setenv("CC", "/opt/cc")
    require_compiler()
