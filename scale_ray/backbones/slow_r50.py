"""Slow R50, the backbone of rho-BYOL: the Slow pathway of SlowFast alone (one of the paper's five).

A ResNet-50 whose kernels are one frame long in the stem and the first two stages, and three frames long
in the last two. The modules are named as in the files of SlowFast's model zoo, so that a file fits as it
is. Those files hold, under `model_state`, either a supervised model (`s1...`, `head.projection...`) or a
contrastive one: the model under `backbone.`, beside its momentum copy (`backbone_hist.`), queues and heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scale_ray.backbones.backbone import KINETICS_MEAN, KINETICS_STD, Backbone
from scale_ray.backbones.random_weights import seeded, settle_batch_norms
from scale_ray.backbones.weights import load_strictly, read_weights, state_in
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

NAME = "slow_r50"
_INPUT_PX = 224
# Smaller than what is seen later: the statistics are those of noise, and this takes a second, not ten.
_SETTLING_FRAMES = 4
_SETTLING_PX = 112
_DEPTHS = (3, 4, 6, 3)
_KERNEL_FRAMES = (1, 1, 3, 3)


class SlowR50(nn.Module):
    """Maps floats (clips, 3, T, S, S) to (clips, 2048), averaged over time and space; any T and S."""

    def __init__(self) -> None:
        super().__init__()
        self.s1 = nn.ModuleDict({"pathway0_stem": _Stem(64)})
        width_in = 64
        for stage, (depth, kernel_frames) in enumerate(zip(_DEPTHS, _KERNEL_FRAMES, strict=True)):
            inner = 64 * 2**stage
            blocks = {}
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks[f"pathway0_res{index}"] = _Block(width_in, inner, kernel_frames, stride)
                width_in = 4 * inner
            self.add_module(f"s{stage + 2}", nn.ModuleDict(blocks))

    def forward(self, clips: Tensor) -> Tensor:
        for stage in self.children():
            for block in stage.children():
                clips = block(clips)
        return clips.mean((2, 3, 4))


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool_layer = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.pool_layer(self.relu(self.bn(self.conv(clips))))


class _Bottleneck(nn.Module):
    """T x 1 x 1, 1 x 3 x 3 (which holds the stride), 1 x 1 x 1."""

    def __init__(self, width_in: int, inner: int, kernel_frames: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv3d(width_in, inner, (kernel_frames, 1, 1), padding=(kernel_frames // 2, 0, 0), bias=False)
        self.a_bn = nn.BatchNorm3d(inner)
        self.b = nn.Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.b_bn = nn.BatchNorm3d(inner)
        self.c = nn.Conv3d(inner, 4 * inner, 1, bias=False)
        self.c_bn = nn.BatchNorm3d(4 * inner)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, clips: Tensor) -> Tensor:
        clips = self.relu(self.a_bn(self.a(clips)))
        clips = self.relu(self.b_bn(self.b(clips)))
        return self.c_bn(self.c(clips))


class _Block(nn.Module):
    def __init__(self, width_in: int, inner: int, kernel_frames: int, stride: int) -> None:
        super().__init__()
        self.projects = width_in != 4 * inner or stride != 1
        if self.projects:
            self.branch1 = nn.Conv3d(width_in, 4 * inner, 1, (1, stride, stride), bias=False)
            self.branch1_bn = nn.BatchNorm3d(4 * inner)
        self.branch2 = _Bottleneck(width_in, inner, kernel_frames, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, clips: Tensor) -> Tensor:
        shortcut = self.branch1_bn(self.branch1(clips)) if self.projects else clips
        return self.relu(shortcut + self.branch2(clips))


def load_slow(options: BackboneOptions) -> Backbone:
    """slow_r50 with the weights of a file of SlowFast's model zoo, or with seeded random ones.

    Raises
    ------
    UserError
        Where no file is given, or one that does not fit.
    """
    weights_id = None
    if options.weights == "default":
        raise UserError(
            f"weights: {NAME} expected --weights FILE, from SlowFast's model zoo, or --weights none, found 'default'"
        )
    if options.weights == "none":
        with seeded(options.backbone_seed):
            trunk = SlowR50()
            settle_batch_norms(trunk, sees_video=True, num_frames=_SETTLING_FRAMES, input_px=_SETTLING_PX)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        trunk = SlowR50()
        load_strictly(trunk, _trunk_state(read_weights(options.weights), options.weights), NAME, options.weights)
    return Backbone(
        NAME,
        trunk,
        input_px=options.input_px or _INPUT_PX,
        mean=options.pixel_mean or KINETICS_MEAN,
        std=options.pixel_std or KINETICS_STD,
        weights_id=weights_id,
        precision=options.precision,
    )


def _trunk_state(read: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    state = state_in(read, ("model_state", "state_dict"), weights)
    inside = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return {key: value for key, value in (inside or state).items() if not key.startswith("head.")}
