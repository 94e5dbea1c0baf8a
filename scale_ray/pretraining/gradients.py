"""Gradients of the loss of the global batch: computed in parts, averaged over the workers, clipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scale_ray.pretraining.objective import Losses, Projections


def backward(parts: Sequence[Callable[[], Projections]], losses_of: Callable[[Projections], Losses]) -> Losses:
    """Backward through the loss of a whole batch, of which each of `parts` projects a part.

    What the losses compare is small. Of several parts it is computed without keeping what leads there; then
    each part is projected again, and passes on the gradients that the loss of the whole batch has for it. A
    part must project the same both times.
    """
    if len(parts) == 1:
        losses = losses_of(parts[0]())
        losses.loss.backward()
        return losses
    with torch.no_grad():
        projected = [project() for project in parts]
    whole = Projections.joined(projected)
    for tensor in whole.differentiable:
        tensor.requires_grad_()
    losses = losses_of(whole)
    losses.loss.backward()
    lengths = zip(*([len(tensor) for tensor in part.differentiable] for part in projected), strict=True)
    gradients = [
        tensor.grad.split(list(of_parts)) if tensor.grad is not None else [None] * len(parts)
        for tensor, of_parts in zip(whole.differentiable, lengths, strict=True)
    ]
    for project, of_part in zip(parts, zip(*gradients, strict=True), strict=True):
        pairs = [
            (output, gradient)
            for output, gradient in zip(project().differentiable, of_part, strict=True)
            if output.requires_grad and gradient is not None
        ]
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
    return losses


def clipped(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients down to a norm of `most` (0: leave them); the norm that they had."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm
