from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_pipeline.errors import ConfigurationError
from stages.device.hardware import at_most_share, free_bytes, gpu_memory, limit_memory, require_compiler


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


def test_a_processor_has_no_gpu_memory_to_limit() -> None:
    limit_memory(torch.device("cpu"), None)
    with pytest.raises(ConfigurationError, match="leave it out") as refused:
        limit_memory(torch.device("cpu"), 8)
    assert refused.value.field == "gpu_memory_gb"


@pytest.mark.gpu
def test_a_limited_gpu_is_a_smaller_one() -> None:
    device = torch.device("cuda:0")
    free, total = gpu_memory(device)
    assert free <= total
    wanted_gb = (total / 4) / 1e9
    with pytest.raises(ConfigurationError, match="has") as refused:
        limit_memory(device, total / 1e9 + 1)
    assert refused.value.field == "gpu_memory_gb"
    limit_memory(device, wanted_gb)
    try:
        left, limit = gpu_memory(device)
        assert limit == pytest.approx(wanted_gb * 1e9, rel=1e-6)
        assert left <= limit
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(limit + 2**21, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.parametrize(
    ("free_gb", "left_gb", "why"),
    [(85, 24, "nobody holds anything"), (80, 19, "what others hold counts"), (20, 0, "more than that is held")],
)
def test_a_limit_leaves_what_a_smaller_gpu_would(
    monkeypatch: pytest.MonkeyPatch, free_gb: int, left_gb: int, why: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_gb * 10**9, 85 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 24 / 85)
    device = torch.device("cuda:0")
    assert gpu_memory(device) == (left_gb * 10**9, 24 * 10**9), why
    assert at_most_share(2**30, 0.015, device) == 360_000_000
    assert at_most_share(2**20, 0.015, device) == at_most_share(2**20, 0.015, torch.device("cpu")) == 2**20
