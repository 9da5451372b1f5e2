"""Optimizers: Muon (K. Jordan, 2024) for the matrices inside blocks, AdamW for everything else.

Matrices of one shape are orthogonalised together in one batched Newton-Schulz iteration.
"""

from __future__ import annotations

from collections import defaultdict

import torch

_NS_COEFFICIENTS = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037))
_NS_COEFFICIENTS += ((2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Roughly the nearest orthogonal matrices of [K, m, n], computed in bfloat16."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in _NS_COEFFICIENTS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Momentum, orthogonalised, with decoupled weight decay; updates have AdamW's scale at the same rate."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, momentum: float, weight_decay: float) -> None:
        self._momentum, self._weight_decay = momentum, weight_decay
        by_shape: dict[tuple[int, ...], list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[tuple(parameter.shape)].append(parameter)
        self._stacks = list(by_shape.values())
        self._velocity = [[torch.zeros_like(parameter) for parameter in stack] for stack in self._stacks]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update from the gradients in place."""
        for stack, velocity in zip(self._stacks, self._velocity, strict=True):
            gradients = [parameter.grad for parameter in stack]
            torch._foreach_lerp_(velocity, gradients, 1 - self._momentum)
            ahead = torch.stack(torch._foreach_lerp(gradients, velocity, self._momentum))
            rows, columns = ahead.shape[1:]
            parts = rows // columns if rows % columns == 0 and rows > columns else 1  # fused qkv, and tall MLPs
            update = orthogonalised(ahead.view(-1, rows // parts, columns)).view_as(ahead)
            scale = 0.2 * max(rows // parts, columns) ** 0.5
            torch._foreach_mul_(stack, 1 - learning_rate * self._weight_decay)
            torch._foreach_add_(stack, list((update * scale).unbind(0)), alpha=-learning_rate)
