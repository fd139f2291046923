"""Whether a loss can be learnt from: a small step against its gradient lowers it by as much as the gradient says."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_SHARE = 0.01
"""Of the loss that the step should take away: more than rounding, less than what bends the loss."""


def fall_in_proportion(loss: Callable[[], Tensor], weights: Iterable[nn.Parameter]) -> float:
    """By how much a step against the gradient lowers a loss, divided by what the gradient says: 1 for no step at all.

    It is near 1 where the loss is smooth, and may be some tenths off where a step exchanges what is matched or attended
    to. Where a part of the gradient is missing or wrong, it has no reason to be near 1, or to be positive.

    Args:
        loss: The loss, whose random numbers are the same at each call.
        weights: What is learnt.
    """
    weights = [weight for weight in weights if weight.requires_grad]
    before = loss()
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    slope = sum(gradient.square().sum() for gradient in gradients if gradient is not None).item()
    step = _SHARE * before.item() / slope
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= step * gradient
        return (before.item() - loss().item()) / (step * slope)


def cosine(first: Iterable[Tensor | None], second: Iterable[Tensor | None]) -> float:
    """Of the angle between two gradients over several weights; None is zero."""
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    first, second = (torch.cat([part.flatten() for part in parts]) for parts in zip(*pairs, strict=True))
    return torch.nn.functional.cosine_similarity(first, second, dim=0).item()
