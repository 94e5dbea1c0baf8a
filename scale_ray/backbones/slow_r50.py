"""Slow R50, the backbone of rho-BYOL: the Slow pathway of SlowFast (one of the paper's five backbones).

It is a ResNet-50 whose kernels span one frame in the stem and the first two stages, and three frames in the
last two. The modules have the names used in the files of SlowFast's model zoo, so no tensor is renamed. Under
`model_state`, those files contain either a supervised model (`s1...`, `head.projection...`) or a contrastive
one: the model that was trained (`backbone.`), its momentum copy (`backbone_hist.`), queues and projection heads
(`ssl_128.`, `ssl_256.` and `head.` in either copy). The momentum copy is used if there is one, as by the authors of
the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from scale_ray.backbones.backbone import KINETICS_MEAN, KINETICS_STD, Backbone
from scale_ray.backbones.random_weights import seeded, settle_batch_norms
from scale_ray.backbones.weights import load_strictly, read_weights, state_in, unused_notes
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

NAME = "slow_r50"
_INPUT_PX = 224
# The noise that sets the batch norms is smaller than real clips: this takes one second instead of ten.
_NOISE_FRAMES = 4
_NOISE_PX = 112
_DEPTHS = (3, 4, 6, 3)
_KERNEL_FRAMES = (1, 1, 3, 3)
# The copies of the model in a contrastive file, the preferred one first, and the heads in each of them.
_COPIES = {"momentum": "backbone_hist.", "online": "backbone."}
_HEADS = ("head.", "ssl_")


class SlowR50(nn.Module):
    """Map floats (clips, 3, T, S, S), for any T and S, to (clips, 2048): the average over time and space."""

    def __init__(self) -> None:
        super().__init__()
        self.s1 = nn.ModuleDict({"pathway0_stem": _Stem(64)})
        width_in = 64
        for stage, (depth, kernel_frames) in enumerate(zip(_DEPTHS, _KERNEL_FRAMES, strict=True)):
            inner_width = 64 * 2**stage
            blocks = {}
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks[f"pathway0_res{index}"] = _Block(width_in, inner_width, kernel_frames, stride)
                width_in = 4 * inner_width
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
    """Convolutions of T x 1 x 1, 1 x 3 x 3 (with the stride) and 1 x 1 x 1."""

    def __init__(self, width_in: int, inner_width: int, kernel_frames: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv3d(width_in, inner_width, (kernel_frames, 1, 1), padding=(kernel_frames // 2, 0, 0), bias=False)
        self.a_bn = nn.BatchNorm3d(inner_width)
        self.b = nn.Conv3d(inner_width, inner_width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.b_bn = nn.BatchNorm3d(inner_width)
        self.c = nn.Conv3d(inner_width, 4 * inner_width, 1, bias=False)
        self.c_bn = nn.BatchNorm3d(4 * inner_width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, clips: Tensor) -> Tensor:
        clips = self.relu(self.a_bn(self.a(clips)))
        clips = self.relu(self.b_bn(self.b(clips)))
        return self.c_bn(self.c(clips))


class _Block(nn.Module):
    def __init__(self, width_in: int, inner_width: int, kernel_frames: int, stride: int) -> None:
        super().__init__()
        self.has_projection = width_in != 4 * inner_width or stride != 1
        if self.has_projection:
            self.branch1 = nn.Conv3d(width_in, 4 * inner_width, 1, (1, stride, stride), bias=False)
            self.branch1_bn = nn.BatchNorm3d(4 * inner_width)
        self.branch2 = _Bottleneck(width_in, inner_width, kernel_frames, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, clips: Tensor) -> Tensor:
        shortcut = self.branch1_bn(self.branch1(clips)) if self.has_projection else clips
        return self.relu(shortcut + self.branch2(clips))


def load_slow(options: BackboneOptions) -> Backbone:
    """Load slow_r50 with weights from a file of SlowFast's model zoo, or with seeded random weights.

    Raises
    ------
    UserError
        If no file is given, or if the file does not fit.
    """
    weights_id, details, notes = None, {}, []
    if options.weights == "default":
        raise UserError(
            f"weights: {NAME} expected --weights FILE (from SlowFast's model zoo) or --weights none, found 'default'"
        )
    if options.weights == "none":
        with seeded(options.backbone_seed):
            trunk = SlowR50()
            settle_batch_norms(trunk, sees_video=True, num_frames=_NOISE_FRAMES, input_px=_NOISE_PX)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        trunk = SlowR50()
        state = state_in(read_weights(options.weights), ("model_state", "state_dict"), options.weights)
        copy, prefix = _copy_in(state)
        used = {key: key.removeprefix(prefix) for key in state if _is_of_trunk(key, prefix)}
        load_strictly(trunk, {used[key]: state[key] for key in used}, NAME, options.weights)
        if copy == "momentum":  # not "online": files without a momentum copy leave no choice
            details["weights_copy"] = copy
        if copy:
            notes.append(f"{NAME}: weights of the {copy} copy ({prefix}*)")
        notes += unused_notes(NAME, (key for key in state if key not in used))
    return Backbone(
        NAME,
        trunk,
        input_px=options.input_px or _INPUT_PX,
        size_step_px=1,
        mean=options.pixel_mean or KINETICS_MEAN,
        std=options.pixel_std or KINETICS_STD,
        weights_id=weights_id,
        precision=options.precision,
        details=details,
        notes=notes,
    )


def _copy_in(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The copy of the model to take from a file, and the prefix of its tensors; empty for a file without copies."""
    present = (copy for copy, prefix in _COPIES.items() if any(key.startswith(prefix) for key in state))
    copy = next(present, "")
    return copy, _COPIES.get(copy, "")


def _is_of_trunk(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and not key.removeprefix(prefix).startswith(_HEADS)
