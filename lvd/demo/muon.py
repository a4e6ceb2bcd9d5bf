"""Muon (Jordan et al., 2024): momentum made orthogonal, for the weight matrices of a network's blocks.

It needs a fraction of AdamW's steps where data and hours are few. Everything else, biases, norms, first and
last layers, stays with AdamW.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Module, Parameter

_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a quintic that brings singular values near 1


class Muon(torch.optim.Optimizer):
    """Steps of `lr` along the orthogonalised momentum, each weight seen as a matrix `[out, rest]`."""

    def __init__(self, parameters: Iterable[Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                average = state["average"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(average, group["momentum"]).flatten(1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                weight.add_(update.view_as(weight), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Nearly the closest matrix with orthonormal rows or columns, by Newton-Schulz iterations; 0 stays 0."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found: Tensor = wide / (wide.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T if matrix.shape[0] > matrix.shape[1] else found


def matrices_and_rest(module: Module) -> tuple[list[Parameter], list[Parameter]]:
    """The weight matrices and kernels of a network's blocks, for Muon, and its other parameters."""
    matrices: list[Parameter] = []
    rest: list[Parameter] = []
    for name, parameter in module.named_parameters():
        (matrices if parameter.ndim >= 2 and "block" in name else rest).append(parameter)
    return matrices, rest
