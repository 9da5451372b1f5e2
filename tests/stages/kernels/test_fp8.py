"""Products with weights in FP8, against plain torch on dequantised values."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.codes.row_codes import RowCodes, quantise_rows
from stages.kernels.fp8.block_products import has_library_product, kernel_product, library_product
from stages.kernels.fp8.linear import (
    MOST_FP8_FEW_ROWS,
    few_rows_fp8_gated,
    fp8_linear,
    invariant_fp8_linear,
    takes_codes,
)
from stages.kernels.skinny_linear import row_linear, skinny_linear
from stages.kernels.tiling import RowTiling, Tiling
from stages.weights.fp8_matrix import Fp8Matrix, dequantise, quantise
from tests.kit.models.fp8_rows import rounded

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's products of bf16 are wrong
SIZES = [(256, 128), (200, 72), (130, 300)]  # inputs and outputs; blocks of scales are cut short
WEIGHT_ONLY = 5e-3
"""Distance of a product in bf16 from fp32 on the same values: the rounding of its result."""
ROUNDED_ROWS = 0.04
"""Distance where rows are rounded to e4m3, whose steps are 1/16 to 1/8: 2.6 % on average."""


def rows(n: int, inputs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows whose blocks of columns differ in size, so that a wrong scale is noticed."""
    generator = torch.Generator().manual_seed(n + inputs)
    sizes = torch.exp2(torch.arange(inputs) // 128 % 5 - 2.0)
    return (torch.randn(n, inputs, generator=generator) * sizes).to(device, dtype)


@lru_cache(maxsize=1)
def matrix(outputs: int, inputs: int, device: torch.device) -> Fp8Matrix:
    """A weight whose blocks differ in size."""
    generator = torch.Generator(device).manual_seed(outputs + inputs)
    blocks = torch.arange(outputs, device=device)[:, None] // 128 + torch.arange(inputs, device=device) // 128
    weight = torch.randn(outputs, inputs, generator=generator, device=device)
    return quantise(weight * torch.exp2(blocks % 4 - 1.0) / inputs**0.5)


def multiplied(x: Tensor, weight: Fp8Matrix, tiling: Tiling | RowTiling, *, gated: bool = False) -> Tensor:
    if isinstance(tiling, RowTiling):
        return row_linear(x, weight, tiling, gated=gated)
    return skinny_linear(x, weight, tiling, gated=gated)


def distance(have: Tensor, want: Tensor) -> float:
    return float((have.float() - want).norm() / want.norm())


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("n", "tiling"),
    [
        (18, Tiling(16, 32, 32)),
        (18, Tiling(16, 16, 64, swap=True)),
        (18, Tiling(16, 32, 128)),
        (2, RowTiling(4, 128, num_stages=3)),
        (2, RowTiling(16, 256)),
        (2, RowTiling(2, 32)),
    ],
)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_codes_are_multiplied_as_values(device, dtype, n, tiling, inputs, outputs) -> None:
    x, weight = rows(n, inputs, device, dtype), matrix(outputs, inputs, device)
    want = F.linear(x.double(), weight.dequantised(torch.float64))
    assert distance(multiplied(x, weight, tiling), want) < (1e-6 if dtype == torch.float32 else WEIGHT_ONLY)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("tiling", [Tiling(16, 32, 64), Tiling(16, 64, 128, swap=True), RowTiling(4, 256)])
def test_gate_and_up_have_their_own_scales(device, dtype, tiling) -> None:
    x, weight = rows(3, 200, device, dtype), matrix(512, 200, device)
    want = silu_mul(F.linear(x.double(), weight.dequantised(torch.float64)))
    have = multiplied(x, weight, tiling, gated=True)
    assert distance(have, want) < (1e-6 if dtype == torch.float32 else 2 * WEIGHT_ONLY)


@pytest.mark.parametrize("inputs", [128, 72, 300, 2100])
def test_rows_get_the_codes_of_plain_torch(device, inputs) -> None:
    x = rows(6, inputs, device, torch.float32)
    x[1], x[2, :40] = 0.0, torch.linspace(1e-5, 1e-2, 40)  # zeros; values whose codes are below the normal ones
    found = quantise_rows(x)
    assert found.codes.shape == (8, inputs)
    values = found.codes.float() * found.scales.t().repeat_interleave(128, 1)[:, :inputs]
    assert not values[6:].any()
    want = rounded(x)
    is_other = (values[:6] - want).abs() > 1e-6 * want.abs()
    assert is_other.float().mean() < 1e-3  # a GPU's fast division may put a value on the other side of a tie
    torch.testing.assert_close(values[:6], want, atol=1e-4, rtol=1 / 7)


@pytest.mark.gpu  # the interpreter's FP8 has no NaN
def test_a_row_with_nan_spoils_itself_only() -> None:
    device = torch.device("cuda")
    x, weight = rows(5, 256, device, torch.bfloat16), matrix(64, 256, device)
    want = kernel_product(quantise_rows(x), weight)
    x[2, 200], x[3, 7] = float("nan"), float("inf")
    found = kernel_product(quantise_rows(x), weight)
    assert found[2:4].isnan().all()
    assert torch.equal(found[[0, 1, 4]], want[[0, 1, 4]])


@pytest.mark.parametrize("n", [1, 70])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_block_product_is_that_of_the_rounded_rows(device, n, inputs, outputs) -> None:
    x, weight = rows(n, inputs, device, torch.float32), matrix(outputs, inputs, device)
    have = kernel_product(quantise_rows(x), weight)
    values = weight.dequantised(torch.float64)
    assert distance(have, F.linear(rounded(x).double(), values)) < 1e-3  # a GPU sums FP8 in some 13 bits
    assert distance(have, F.linear(x.double(), values)) < ROUNDED_ROWS


@pytest.mark.parametrize(("n", "inputs", "are_codes"), [(1, 12_288, False), (2, 12_288, True), (2, 4096, False)])
def test_rows_with_many_inputs_are_quantised_but_for_a_single_one(device, n, inputs, are_codes) -> None:
    weight = Fp8Matrix(torch.empty(4, inputs, dtype=torch.float8_e4m3fn), torch.empty(1, inputs // 128))
    assert takes_codes(torch.empty(n, 4, dtype=HALF), weight, kernel_product) == are_codes
    assert not takes_codes(torch.empty(n, 4, dtype=HALF), weight, None)


@pytest.mark.parametrize("n", [0, 1, 20, MOST_FP8_FEW_ROWS + 1])
@pytest.mark.parametrize("product", [None, kernel_product])
def test_any_number_of_rows(device, n, product) -> None:
    x, weight = rows(n, 200, device, HALF), matrix(256, 200, device)
    want = F.linear(x.double(), weight.dequantised(torch.float64))
    tolerance = WEIGHT_ONLY if product is None or n <= MOST_FP8_FEW_ROWS else ROUNDED_ROWS
    linear = fp8_linear(x, weight, product)
    assert linear.shape == (n, 256)
    if n:
        assert distance(linear, want) < tolerance
        assert distance(few_rows_fp8_gated(x, weight), silu_mul(want)) < 2 * WEIGHT_ONLY


def test_a_row_ignores_the_other_rows(device) -> None:
    x, weight = rows(70, 300, device, torch.float32), matrix(140, 300, device)
    together = invariant_fp8_linear(x, weight)
    assert distance(together, F.linear(x.double(), weight.dequantised(torch.float64))) < 1e-6
    for few in (slice(0, 1), slice(60, 63), slice(5, 30)):
        assert torch.equal(invariant_fp8_linear(x[few], weight), together[few])


@pytest.mark.gpu
@pytest.mark.parametrize(("inputs", "outputs"), [(2048, 2560), (4096, 6144), (4096, 24576), (12288, 4096)])
@pytest.mark.parametrize("n", [1, 7, 16, 64, 300, 2048])
def test_published_shapes_on_a_gpu(n, inputs, outputs) -> None:
    """Each way to each product, and twice the same bits, captured in a graph."""
    device = torch.device("cuda")
    x, weight = rows(n, inputs, device, torch.bfloat16), matrix(outputs, inputs, device)
    values = weight.dequantised(torch.float32)
    want, want_rounded = F.linear(x.float(), values), F.linear(rounded(x), values)
    assert distance(fp8_linear(x, weight, None), want) < WEIGHT_ONLY
    assert distance(invariant_fp8_linear(x, weight), want) < WEIGHT_ONLY
    assert distance(few_rows_fp8_gated(x, weight), silu_mul(want)) < 2 * WEIGHT_ONLY
    products = [kernel_product, *([library_product] if has_library_product(device) else [])]
    for product in products:
        have = product(quantise_rows(x), weight)
        assert distance(have, want_rounded) < WEIGHT_ONLY, product.__name__
        assert distance(have, want) < ROUNDED_ROWS, product.__name__
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = product(quantise_rows(x), weight)
        graph.replay()
        assert torch.equal(captured, have), product.__name__


@pytest.mark.gpu
@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 6144), (12288, 4096)])
def test_a_row_of_a_published_shape_ignores_the_other_rows(inputs, outputs) -> None:
    device = torch.device("cuda")
    x, weight = rows(700, inputs, device, torch.bfloat16), matrix(outputs, inputs, device)
    together = invariant_fp8_linear(x, weight)
    for few in (slice(0, 1), slice(70, 73), slice(5, 55), slice(9, 200), slice(5, 500)):
        assert torch.equal(invariant_fp8_linear(x[few].contiguous(), weight), together[few])


@pytest.mark.gpu
def test_the_library_multiplies_on_hopper() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the library has this product for Hopper only")
    assert has_library_product(torch.device("cuda"))


def test_rows_are_what_the_library_wants(device) -> None:
    found = quantise_rows(rows(5, 512, device, HALF))
    assert isinstance(found, RowCodes)
    assert (found.num_rows, found.codes.shape, found.scales.t().stride()) == (5, (8, 512), (1, 8))


def test_values_are_codes_times_scales() -> None:
    weight = matrix(200, 300, torch.device("cpu"))
    assert torch.equal(weight.dequantised(torch.float32), dequantise(weight.codes, weight.scales))
