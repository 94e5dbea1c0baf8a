"""Heads that are trained on frozen representations; each maps clips (B, V, d) to logits (B, V or 1, K)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.aggregator import HEAD_WIDTH, Aggregator, chosen_tokens, clip_representations
from scale_ray.config import Representing

_MLP_WIDTHS = (2048, 2048, 512)
_ATTENTION_HEADS = 8


class LinearHead(nn.Linear):
    """A linear classifier of every clip (section 4.1 of the paper: linear probe)."""


class MlpHead(nn.Module):
    """The paper's non-linear baseline: d -> 2048 -> 2048 -> 512, and a classifier on `[x, mlp(x)]`.

    ReLU between the layers, none after the last.
    """

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        widths = (width, *_MLP_WIDTHS)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.classifier = nn.Linear(width + widths[-1], num_outputs)

    def forward(self, clips: Tensor) -> Tensor:
        first, *others = self.layers
        hidden = first(clips)
        for layer in others:
            hidden = layer(F.relu(hidden))
        return self.classifier(torch.cat([clips, hidden], -1))


class AttentiveHead(nn.Module):
    """One learned query attends to the clips of a set, followed by a linear classifier."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        inner = _ATTENTION_HEADS * HEAD_WIDTH
        self.key_value = nn.Linear(width, 2 * inner)
        self.query = nn.Parameter(torch.randn(_ATTENTION_HEADS, HEAD_WIDTH) * HEAD_WIDTH**-0.5)
        self.norm = nn.LayerNorm(inner)
        self.classifier = nn.Linear(inner, num_outputs)

    def forward(self, clips: Tensor) -> Tensor:
        keys, values = self.key_value(clips).unflatten(-1, (2, _ATTENTION_HEADS, HEAD_WIDTH)).unbind(-3)
        attention = (torch.einsum("bvhw,hw->bvh", keys, self.query) * HEAD_WIDTH**-0.5).softmax(1)
        attended = torch.einsum("bvh,bvhw->bhw", attention, values).flatten(1)
        return self.classifier(self.norm(attended))[:, None]


class FineTunedHead(nn.Module):
    """Aggregator and linear classifier trained together, on `[feature, position]` of the clips of a set.

    `mean` and `scale` (d,) standardise the representation as for the linear probe, with the statistics of the
    aggregator before the training.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        aggregator: Aggregator,
        mean: Tensor,
        scale: Tensor,
        num_outputs: int,
        representing: Representing | None = None,
    ) -> None:
        super().__init__()
        self.aggregator, self.representing = aggregator, representing or Representing()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.classifier = nn.Linear(len(mean), num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        features, positions = inputs.split([inputs.shape[-1] - 7, 7], -1)
        set_token, clip_tokens = self.aggregator(features, positions)
        tokens = chosen_tokens(set_token, clip_tokens, self.representing)
        clips = clip_representations(features, tokens, self.representing)
        return self.classifier((clips - self.mean) * self.scale)
