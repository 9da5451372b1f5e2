from __future__ import annotations

import pytest
import torch

from broker_pipeline.errors import ConfigurationError
from stages.device.choice import choose_device, choose_dtype


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda"}


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "meta", ""])
def test_devices_that_are_not_here_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        choose_device(name)
    assert refusal.value.field == "device"


def test_auto_dtype_is_that_of_the_artifact() -> None:
    assert choose_dtype("auto", torch.bfloat16) is torch.bfloat16
    assert choose_dtype("float32", torch.bfloat16) is torch.float32
