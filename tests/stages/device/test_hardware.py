from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_pipeline.errors import ConfigurationError
from stages.device.hardware import free_bytes, require_compiler


def test_a_host_has_memory_left() -> None:
    assert free_bytes(torch.device("cpu")) > 2**20


def test_kernels_need_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="C compiler") as refused:
        require_compiler()
    assert refused.value.field == "attention"
    monkeypatch.setenv("CC", "/opt/cc")
    require_compiler()
