"""Projected gradient descent (Madry et al., 2018) on what tells a loss, a margin and whether it counts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]
SAFELY = 0.1  # below the boundary: what float32 here and the guard's own sums may differ by
FREE_RATE = 0.25  # of a step without a bound


@dataclass(frozen=True)
class Seen:
    """What becomes of B noises."""

    loss_B: Tensor  # to be lowered; differentiable
    margin_B: Tensor  # the highest of the rule: above 0 it is caught
    unsafe_B: Tensor  # bool: whether the video still is


@dataclass(frozen=True)
class Found:
    """The best noise for the attacker, `[B, ...]`, and the losses of each iteration, `[B]`."""

    best: Tensor
    margin_B: Tensor  # inf where no video was unsafe
    losses: list[Tensor]


def size(offset: Tensor, norm: Norm) -> Tensor:
    """How far each sample was moved, `[B]`: root mean square of its numbers (l2), or the largest (linf)."""
    flat = offset.flatten(1)
    return flat.pow(2).mean(dim=1).sqrt() if norm == "l2" else flat.abs().amax(dim=1)


def project(offset: Tensor, budget: float, norm: Norm) -> Tensor:
    """The nearest offset within the budget."""
    if norm == "linf":
        return offset.clamp(-budget, budget)
    factor = (budget / size(offset, norm).clamp_min(1e-12)).clamp_max(1)
    return offset * _per_sample(factor, offset)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest step of size 1; none where there is no gradient."""
    if norm == "linf":
        return gradient.sign()
    return gradient / _per_sample(size(gradient, norm).clamp_min(1e-12), gradient)


def pgd(see: Callable[[Tensor], Seen], start: Tensor, budget: float, norm: Norm, iterations: int) -> Found:
    """Lower the loss around `start` `[B, ...]`, within the budget; math.inf is no bound.

    Ends early when all are well below the boundary and unsafe.
    """
    rate_of_step = FREE_RATE if math.isinf(budget) else 2.5 * budget / max(iterations, 1)
    offset = torch.zeros_like(start)
    best, margin_B = start.clone(), start.new_full((len(start),), math.inf)
    losses = []
    for iteration in range(iterations + 1):
        goes_on = budget > 0 and iteration < iterations
        point = (start + offset).requires_grad_(goes_on)
        with torch.set_grad_enabled(goes_on):
            seen = see(point)
        losses.append(seen.loss_B.detach())
        better = seen.unsafe_B & (seen.margin_B.detach() < margin_B)
        best[better], margin_B[better] = point.detach()[better], seen.margin_B.detach()[better]
        if not goes_on or bool((margin_B < -SAFELY).all()):
            break
        (gradient,) = torch.autograd.grad(seen.loss_B.sum(), point)
        offset = project(offset - rate_of_step * direction(gradient, norm), budget, norm)
    return Found(best, margin_B, losses)


def _per_sample(values_B: Tensor, like: Tensor) -> Tensor:
    return values_B.reshape(-1, *[1] * (like.ndim - 1))
