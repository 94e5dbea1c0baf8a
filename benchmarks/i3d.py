"""I3D (Inception-v1, RGB) as a custom backbone of the sweep's benchmark: `--backbone i3d:i3d --weights FILE`.

The weights are a flat state dict `body.LAYER.conv.weight`, `.bias`, with batch norms folded in. Padding is TensorFlow's
SAME: zeros, one more behind than in front if their number is odd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCKS = (
    *("Conv3d_1a_7x7", "pool 1 3 1 2", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "pool 1 3 1 2"),
    *("Mixed_3b", "Mixed_3c", "pool 3 3 2 2"),
    *("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "pool 2 2 2 2"),
    *("Mixed_5b", "Mixed_5c"),
)


def _padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    sides: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


def _max_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_padded(x, kernel, stride), kernel, stride)


class I3D(nn.Module):
    """Pixels in [-1, 1], (clips, 3, T, S, S), to (clips, 1024)."""

    input_px = 112
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, weights: str) -> None:
        super().__init__()
        state = torch.load(weights, map_location="cpu", weights_only=True)
        tensors = {name.removeprefix("body."): value for name, value in state.items() if name.startswith("body.")}
        self.tensors = nn.ParameterDict({name.replace(".", "-"): nn.Parameter(t) for name, t in tensors.items()})

    def forward(self, x: Tensor) -> Tensor:
        for block in _BLOCKS:
            if block.startswith("pool"):
                t, s, stride_t, stride_s = map(int, block.split()[1:])
                x = _max_pool(x, (t, s, s), (stride_t, stride_s, stride_s))
            elif block.startswith("Mixed"):
                pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
                x = torch.cat(
                    [
                        self._conv(x, f"{block}.b0"),
                        self._conv(self._conv(x, f"{block}.b1a"), f"{block}.b1b"),
                        self._conv(self._conv(x, f"{block}.b2a"), f"{block}.b2b"),
                        self._conv(pooled, f"{block}.b3"),
                    ],
                    1,
                )
            else:
                x = self._conv(x, block, stride=2 if "1a" in block else 1)
        return x.mean((2, 3, 4))

    def _conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = (self.tensors[f"{name}.conv.{part}".replace(".", "-")] for part in ("weight", "bias"))
        strides = (stride,) * 3
        return F.conv3d(_padded(x, tuple(weight.shape[2:]), strides), weight, bias, strides).relu_()


def i3d(weights: str) -> I3D:
    return I3D(weights)
