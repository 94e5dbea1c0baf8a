"""Gradients of the loss of the global batch: computed in parts, averaged over the workers, clipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scale_ray.objective import Losses, Projections


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


def average_over_workers(parameters: Sequence[nn.Parameter]) -> None:
    """Mean gradient over the workers: the objective's scaling makes it that of the global batch."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def clipped(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients down to a norm of `most` (0: leave them); the norm that they had."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm
