"""Kernels run on the GPU where there is one, in Triton's interpreter elsewhere, and are left out without Triton."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

collect_ignore = [] if find_spec("triton") else ["kernels", "compute/fused/test_decoder.py"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
