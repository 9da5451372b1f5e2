from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_pipeline.errors import ConfigurationError
from stages.device.hardware import free_bytes, left_of_limit_bytes, require_compiler


def test_a_host_has_memory_left() -> None:
    assert free_bytes(torch.device("cpu")) > 2**20


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 90000\nshmem 500\ninactive_file 89500\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert left_of_limit_bytes(tmp_path) == 6500
    (tmp_path / "memory.max").write_text("max\n")
    assert left_of_limit_bytes(tmp_path) == float("inf")
    assert left_of_limit_bytes(tmp_path / "none") == float("inf")


def test_kernels_need_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="C compiler") as refused:
        require_compiler()
    assert refused.value.field == "attention"
    monkeypatch.setenv("CC", "/opt/cc")
    require_compiler()
