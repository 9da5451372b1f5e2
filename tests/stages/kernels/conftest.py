"""Kernels run on the GPU where there is one, in Triton's interpreter elsewhere, and are skipped without Triton."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
