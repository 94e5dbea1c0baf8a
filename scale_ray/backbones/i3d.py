"""I3D, Inception-v1 inflated to three dimensions: the RGB network that action localisation uses, 1024 wide.

It is the network of DeepMind's release on Kinetics-400. Padding is TensorFlow's SAME: zeros, one more behind than in
front if their number is odd. Batch norms (epsilon 0.001) are folded into the convolutions when a file is loaded.

Files come in three layouts; a tensor's name is that of its layer and of its part:

    body.Mixed_3b.b1a.conv.weight, .bias                 batch norms folded
    Mixed_3b.b1a.conv3d.weight, .bn.running_mean ...     pytorch-i3d, such as rgb_imagenet.pt
    mixed_3b.branch_1.0.conv3d.weight, .batch3d.bias ... kinetics_i3d_pytorch, such as model_rgb.pth

The code of the last layout pads most layers as if every size were even, so it computes something else where one is odd
(not for 16 frames of 224 px); here all weights are used with TensorFlow's padding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.backbones.backbone import Backbone
from scale_ray.backbones.random_weights import seeded, standardise_convolutions
from scale_ray.backbones.weights import load_strictly, read_weights, state_in, unused_notes
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

NAME = "i3d"
_INPUT_PX = 224
_MEAN = _STD = (0.5, 0.5, 0.5)
_EPSILON = 1e-3
# The noise that scales random weights is smaller than real clips, which saves time. With fewer frames, the zeros around
# them would count for so much that real clips come out a hundred times larger.
_NOISE_FRAMES = 16
_NOISE_PX = 64

# Widths of a block's branches: 1x1, 1x1 then 3x3, 1x1 then 3x3, 1x1 after a pool.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Kernel and stride of the max pool before a layer.
_POOLS = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}

# Patterns of other layouts' names, replaced in this order by those of the modules below.
_RENAMES = (
    (r"^body\.", ""),
    (r"^conv3d_(\d\w_\dx\d)\.", r"Conv3d_\1."),
    (r"^mixed_", "Mixed_"),
    (r"\.branch_0\.", ".b0."),
    (r"\.branch_([12])\.0\.", r".b\1a."),
    (r"\.branch_([12])\.1\.", r".b\1b."),
    (r"\.branch_3\.1\.", ".b3."),
    (r"\.b3b\.", ".b3."),
    (r"\.conv3d\.", ".conv."),
    (r"\.batch3d\.", ".bn."),
)
_CLASSIFIERS = ("head.", "logits.", "conv3d_0c_1x1.")


class I3D(nn.Module):
    """Map floats (clips, 3, T, S, S) in [-1, 1], for any T and S, to (clips, 1024): the average over time and space."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Convolution(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Convolution(64, 64, 1)
        self.Conv3d_2c_3x3 = _Convolution(64, 192, 3)
        width = 192
        for name, widths in _MIXED.items():
            block = _Mixed(width, widths)
            self.add_module(name, block)
            width = block.width

    def forward(self, clips: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name in _POOLS:
                clips = _max_pool(clips, *_POOLS[name])
            clips = layer(clips)
        return clips.mean((2, 3, 4))


class _Convolution(nn.Module):
    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width_in, width, kernel, stride)

    def forward(self, clips: Tensor) -> Tensor:
        return self.conv(_padded(clips, self.conv.kernel_size, self.conv.stride)).relu_()


class _Mixed(nn.Module):
    """Four branches, whose outputs are joined."""

    def __init__(self, width_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.width = widths[0] + widths[2] + widths[4] + widths[5]
        self.b0 = _Convolution(width_in, widths[0], 1)
        self.b1a = _Convolution(width_in, widths[1], 1)
        self.b1b = _Convolution(widths[1], widths[2], 3)
        self.b2a = _Convolution(width_in, widths[3], 1)
        self.b2b = _Convolution(widths[3], widths[4], 3)
        self.b3 = _Convolution(width_in, widths[5], 1)

    def forward(self, clips: Tensor) -> Tensor:
        pooled = _max_pool(clips, (3, 3, 3), (1, 1, 1))
        branches = [self.b0(clips), self.b1b(self.b1a(clips)), self.b2b(self.b2a(clips)), self.b3(pooled)]
        return torch.cat(branches, 1)


def load_i3d(options: BackboneOptions) -> Backbone:
    """Load i3d with weights from a file in one of three layouts, or with seeded random weights.

    Raises
    ------
    UserError
        If no file is given, or if the file does not fit.
    """
    weights_id, notes = None, []
    if options.weights == "default":
        raise UserError(
            f"weights: {NAME} expected --weights FILE (of I3D, RGB, such as rgb_imagenet.pt) or --weights none, "
            "found 'default'"
        )
    if options.weights == "none":
        with seeded(options.backbone_seed):
            trunk = I3D()
            standardise_convolutions(trunk, num_frames=_NOISE_FRAMES, input_px=_NOISE_PX)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        trunk = I3D()
        state = state_in(read_weights(options.weights), ("state_dict", "model"), options.weights)
        unused = [key for key in state if key.startswith(_CLASSIFIERS)]
        load_strictly(trunk, _trunk_state(state, unused), NAME, options.weights)
        notes = unused_notes(NAME, unused)
    return Backbone(
        NAME,
        trunk,
        input_px=options.input_px or _INPUT_PX,
        size_step_px=1,
        mean=options.pixel_mean or _MEAN,
        std=options.pixel_std or _STD,
        weights_id=weights_id,
        precision=options.precision,
        notes=notes,
    )


def _trunk_state(state: Mapping[str, Tensor], unused: Iterable[str]) -> dict[str, Tensor]:
    """The trunk's tensors under the names of its modules, with batch norms folded into the convolutions."""
    named = {_own_name(key): value for key, value in state.items() if key not in set(unused)}
    folded = {key: value for key, value in named.items() if ".bn." not in key}
    for layer in (key.removesuffix(".bn.running_var") for key in named if key.endswith(".bn.running_var")):
        parts = [f"{layer}.conv.weight", *(f"{layer}.bn.{part}" for part in ("running_mean", "running_var", "bias"))]
        if all(part in named for part in parts):
            weight, mean, variance, bias = (named[part].double() for part in parts)
            scale = named.get(f"{layer}.bn.weight", torch.ones_like(variance)).double() / (variance + _EPSILON).sqrt()
            folded[parts[0]] = (weight * scale.view(-1, 1, 1, 1, 1)).float()
            folded[f"{layer}.conv.bias"] = (bias - mean * scale).float()
    return folded


def _own_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _max_pool(clips: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    # Zeros are no larger than what is pooled, the output of a ReLU.
    return F.max_pool3d(_padded(clips, kernel, stride), kernel, stride)


def _padded(clips: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad time, height and width with zeros as TensorFlow's SAME does: ceil(size / stride) outputs per axis."""
    sides: list[int] = []
    for size, width, step in zip(reversed(clips.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(clips, sides) if any(sides) else clips
