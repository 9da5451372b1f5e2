"""Kernels run on the GPU where there is one, in Triton's interpreter elsewhere, and are left out without Triton."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

_WITH_TRITON = [
    "kernels",
    "compute/fused/test_decoder.py",
    "compute/fused/test_fp8_decoder.py",
    "compute/fused/test_coded_rows.py",
]
collect_ignore = [] if find_spec("triton") else _WITH_TRITON


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count tests of kernels among those for a GPU where they run on one: `-m gpu` is all of them."""
    if torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents and "device" in getattr(item, "fixturenames", ()):
                item.add_marker("gpu")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
