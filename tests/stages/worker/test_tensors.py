from __future__ import annotations

import pytest
import torch

from broker_pipeline.errors import TensorMismatchError
from broker_pipeline.messages.vision import RowDelivery
from broker_pipeline.wire.codec import decode, encode
from stages.worker.tensors import from_wire, to_wire


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int32])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4), (2, 3, 4)])
def test_bits_survive_the_codec(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 1000).to(dtype)
    body = RowDelivery(pipeline="main", fingerprint="f", epoch=0, session="s", attempt=1)
    frame = encode(body, {"x": to_wire(tensor), "y": to_wire(tensor)})
    _, tensors = decode(frame.metadata, b"".join(frame.pieces), RowDelivery)
    for name in ("x", "y"):
        assert torch.equal(from_wire(name, tensors[name], dtype=dtype, shape=shape), tensor)


def test_nan_bits_of_bfloat16_are_kept() -> None:
    bits = torch.arange(-32768, 32768, dtype=torch.int16)
    back = from_wire("x", to_wire(bits.view(torch.bfloat16)), dtype=torch.bfloat16, shape=(None,))
    assert torch.equal(back.view(torch.int16), bits)


def test_nothing_is_copied() -> None:
    tensor = torch.zeros(4, 4, dtype=torch.bfloat16)
    back = from_wire("x", to_wire(tensor), dtype=torch.bfloat16, shape=(4, 4))
    tensor[2, 2] = 7
    assert back[2, 2] == 7


def test_strided_views_travel_as_what_they_show() -> None:
    tensor = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    back = from_wire("x", to_wire(tensor.t()), dtype=torch.int32, shape=(4, 3))
    assert torch.equal(back, tensor.t())


@pytest.mark.parametrize(
    ("dtype", "shape"), [(torch.bfloat16, (2, 3)), (torch.float32, (3, 2)), (torch.float32, (2, 3, 1))]
)
def test_another_dtype_or_shape_is_refused_by_name(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    with pytest.raises(TensorMismatchError) as refusal:
        from_wire("hidden", to_wire(torch.zeros(2, 3)), dtype=dtype, shape=shape)
    assert refusal.value.field == "tensors.hidden"


def test_dtypes_outside_the_contract_are_refused() -> None:
    with pytest.raises(TensorMismatchError, match="float64"):
        to_wire(torch.zeros(2, dtype=torch.float64))
