"""Every way to multiply by a weight in FP8, beside bfloat16, on this GPU: which is fastest for how many rows.

    python -m trials.bench.fp8_products [ROWS …]

Microseconds of one product in a CUDA graph, activations' quantisation included, with a cold L2 cache; and of the
experts of a layer.
`stages/kernels/fp8/linear.py` and `stages/kernels/experts/tiling.py` choose by such tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

import click
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from triton.testing import do_bench_cudagraph

from stages.kernels.codes.row_codes import quantise_rows
from stages.kernels.experts.mlp import fused_experts
from stages.kernels.fp8.block_products import has_library_product, kernel_product, library_product
from stages.kernels.fp8.linear import fp8_linear, invariant_fp8_linear
from stages.kernels.skinny_linear import few_rows_linear
from stages.random_weights import DrawnTensors
from stages.weights.fp8_matrix import Fp8Matrix, Weight

_ROWS = (1, 16, 32, 64, 128, 256, 512, 2048)
_MATRICES = {  # name: outputs, inputs
    "8B qkv": (6144, 4096),
    "8B o": (4096, 4096),
    "8B gate_up": (24_576, 4096),
    "8B down": (4096, 12_288),
    "30B-A3B qkv": (5120, 2048),
}
_EXPERTS = {"30B-A3B": (128, 768, 2048), "235B-A22B": (128, 1536, 4096)}  # name: experts, width, hidden size
_NUM_CHOSEN = 8
_L2_BYTES = 256 * 2**20
"""To be written, so that the L2 cache holds nothing else."""


def main(rows: tuple[int, ...]) -> None:
    """Print the tables."""
    device = torch.device("cuda")
    has_library = has_library_product(device)
    click.echo(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, library's product: {has_library}")
    for name, shape in _MATRICES.items():
        weight = _drawn(shape, device)
        ways = _ways(weight, has_library=has_library)
        _print(name, rows, {way: _timed(multiply, shape[1], rows) for way, multiply in ways.items()})
    for name, (num_experts, width, hidden) in _EXPERTS.items():
        gate_up = _drawn((num_experts, 2 * width, hidden), device)
        down = _drawn((num_experts, hidden, width), device)
        values = gate_up.dequantised(torch.bfloat16), down.dequantised(torch.bfloat16)
        timed = {
            "bfloat16": [_expert_us(n, hidden, num_experts, *values) for n in rows],
            "codes": [_expert_us(n, hidden, num_experts, gate_up, down) for n in rows],
            "rows in FP8 if many": [_expert_us(n, hidden, num_experts, gate_up, down, rows_in_fp8=True) for n in rows],
        }
        _print(f"{name} experts", rows, timed)


def _ways(weight: Fp8Matrix, *, has_library: bool) -> Mapping[str, Callable[[Tensor], Tensor]]:
    values = weight.dequantised(torch.bfloat16)
    ways = {
        "bfloat16": lambda x: few_rows_linear(x, values),
        "codes": lambda x: fp8_linear(x, weight, None),
        "codes, one order": lambda x: invariant_fp8_linear(x, weight),
        "rows in FP8, kernel": lambda x: kernel_product(quantise_rows(x), weight),
    }
    if has_library:
        ways["rows in FP8, library"] = lambda x: library_product(quantise_rows(x), weight)
    return ways


def _drawn(shape: tuple[int, ...], device: torch.device) -> Fp8Matrix:
    name = "model.language_model.layers.0.mlp.experts.down_proj"
    weight = DrawnTensors({name: shape}, device, torch.bfloat16, in_fp8=[name])[name]
    assert isinstance(weight, Fp8Matrix)
    return weight


def _timed(multiply: Callable[[Tensor], Tensor], num_inputs: int, rows: tuple[int, ...]) -> list[float]:
    return [_us(partial(multiply, torch.randn(n, num_inputs, device="cuda", dtype=torch.bfloat16))) for n in rows]


def _expert_us(
    n: int, hidden: int, num_experts: int, gate_up: Weight, down: Weight, *, rows_in_fp8: bool = False
) -> float:
    x = torch.randn(n, hidden, device="cuda", dtype=torch.bfloat16)
    chosen = torch.rand(n, num_experts, device="cuda").argsort(dim=1)[:, :_NUM_CHOSEN].sort(dim=1).values
    shares = F.softmax(torch.randn(n, _NUM_CHOSEN, device="cuda"), dim=1).to(torch.bfloat16)
    return _us(lambda: fused_experts(x, chosen, shares, gate_up, down, rows_in_fp8=rows_in_fp8))


def _us(work: Callable[[], Tensor]) -> float:
    """Time some work together with what takes the weight out of the L2 cache, and that alone."""
    flushed = torch.empty(_L2_BYTES, dtype=torch.int8, device="cuda")

    def cold() -> None:
        flushed.zero_()
        work()

    both_ms, flush_ms = (do_bench_cudagraph(each, rep=10, return_mode="median") for each in (cold, flushed.zero_))
    return 1e3 * float(both_ms - flush_ms)


def _print(name: str, rows: tuple[int, ...], timed: Mapping[str, list[float]]) -> None:
    click.echo(f"\n{name + ', us':24}" + "".join(f"{n:>9,}" for n in rows))
    for way, found in timed.items():
        click.echo(f"{way:24}" + "".join(f"{us:9.1f}" for us in found))


if __name__ == "__main__":
    main(tuple(int(text) for text in sys.argv[1:]) or _ROWS)
