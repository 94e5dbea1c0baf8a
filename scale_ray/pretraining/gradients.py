"""Gradients of the loss of a batch, computed in parts; clipping of their norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scale_ray.pretraining.objective import Losses, Projections


def backward(parts: Sequence[Callable[[], Projections]], losses_of: Callable[[Projections], Losses]) -> Losses:
    """Backpropagate the loss of a whole batch, whose projections are computed in parts to save memory.

    Each of `parts` computes the projections of one part of the batch; they are small. If there are several
    parts, all projections are first computed without a graph, and the loss of the whole batch is backpropagated
    to them. Then each part is projected again, with a graph, and continues from its part of these gradients.
    A part must give the same projections both times.
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
        tensor.grad.split(list(lengths_of_parts)) if tensor.grad is not None else [None] * len(parts)
        for tensor, lengths_of_parts in zip(whole.differentiable, lengths, strict=True)
    ]
    for project, part_gradients in zip(parts, zip(*gradients, strict=True), strict=True):
        pairs = [
            (output, gradient)
            for output, gradient in zip(project().differentiable, part_gradients, strict=True)
            if output.requires_grad and gradient is not None
        ]
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
    return losses


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients to a norm of at most `max_norm` (0: no limit); returns the norm before scaling."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
