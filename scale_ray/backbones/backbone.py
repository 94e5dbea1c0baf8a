"""The interface of all backbones: pixels of clips in, one pooled feature vector per clip out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scale_ray.backbones.weights import weights_hash
from scale_ray.errors import UserError
from scale_ray.files.module_files import ModuleFiles

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The normalisation of SlowFast's video models and of the models derived from them.
KINETICS_MEAN = (0.45, 0.45, 0.45)
KINETICS_STD = (0.225, 0.225, 0.225)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Backbone(nn.Module):
    """A frozen encoder that maps each clip to one feature vector (section 3 of the paper: it is never trained).

    Parameters
    ----------
    name
        The name that the user gives; part of the identity.
    trunk
        Maps floats (batch, 3, T, S, S) to (batch, D) if `sees_video`, otherwise (batch, 3, S, S) to (batch, D').
    sees_video
        Whether the trunk takes a whole clip; otherwise it takes single frames.
    frame_pooling
        For image models: `mean` over the frames (D = D'), or `moments`: mean, standard deviation and mean
        absolute difference of neighbouring frames (D = 3 D').
    input_px
        S, the height and width of the trunk's input.
    size_step_px
        The trunk takes every S that is a multiple of it; None if it takes `input_px` alone. `eval_input_px`, the S of
        clips of mode `eval`, is `input_px` until it is set.
    num_frames
        The number of frames that the trunk takes; None for any number. Longer clips are reduced to evenly
        spaced frames.
    mean, std
        Mean and standard deviation of pixels scaled to [0, 1]: one number, or one each for red, green and blue.
    weights_id
        Identifies the weights; a hash of the trunk's tensors if not given.
    precision
        The data type in which the trunk computes: `float32`, `float16` or `bfloat16`.
    details
        Further entries of the identity, such as which of a file's copies of the weights was taken.
    notes
        Lines for the user about the weights, such as which tensors of a file are not used.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        trunk: nn.Module,
        *,
        input_px: int,
        size_step_px: int | None = None,
        sees_video: bool = True,
        frame_pooling: str = "mean",
        num_frames: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        weights_id: str | None = None,
        precision: str = "float32",
        details: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.sees_video = sees_video
        self.frame_pooling = "none" if sees_video else frame_pooling
        self.input_px = self.eval_input_px = input_px
        self.size_step_px = size_step_px
        self.num_frames = num_frames
        # The files of a custom backbone's module: processes on other machines import its classes from them.
        self.module_files: ModuleFiles | None = None
        self.weights_id = weights_id or weights_hash(trunk)
        self.details = dict(details or {})
        self.notes = tuple(notes)
        self.normalise_with(mean, std)
        self.compute_in(precision)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Map clips, uint8 (clips, T, S, S, 3), to features, float32 (clips, D)."""
        if self.num_frames is not None and pixels.shape[1] != self.num_frames:
            pixels = pixels[:, evenly_spaced(pixels.shape[1], self.num_frames)]
        clips, frames, height, width, _ = pixels.shape
        # The decoder's frames have their channels last, and the permuted views below keep that memory layout,
        # which convolutions call channels_last. Normalised in float32, since float16 would round the pixels.
        images = (
            pixels.to(torch.float32, copy=True).div_(255).sub_(self.mean).div_(self.std).to(_DTYPES[self.precision])
        )
        if self.sees_video:
            return self.trunk(images.permute(0, 4, 1, 2, 3)).float()
        features = self.trunk(images.view(clips * frames, height, width, 3).permute(0, 3, 1, 2)).float()
        return _pool_frames(features.view(clips, frames, -1), self.frame_pooling)

    def normalise_with(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation of pixels scaled to [0, 1]: one number each, or one per channel."""
        self.register_buffer("mean", _per_channel(mean))
        self.register_buffer("std", _per_channel(std))

    def compute_in(self, precision: str) -> None:
        """Let the trunk compute in `float32`, `float16` or `bfloat16`; pixels are always normalised in float32."""
        self.precision = precision
        self.trunk.to(_DTYPES[precision])

    def input_px_of(self, mode: str) -> int:
        """The height and width of the input for clips of a mode."""
        return self.eval_input_px if mode == "eval" else self.input_px

    def scale_eval_input(self, scale: float) -> None:
        """Let the clips of mode `eval` be `scale` times as large as the others, as nearly as the trunk takes it."""
        if self.size_step_px is not None:
            steps = max(round(self.input_px * scale / self.size_step_px), 1)
            self.eval_input_px = steps * self.size_step_px

    def feature_width(self, num_frames: int) -> int:
        """D, determined by encoding one black clip of `num_frames` frames."""
        return self(self.black_clips(1, num_frames)).shape[1]

    def black_clips(self, num_clips: int, num_frames: int, mode: str = "train") -> Tensor:
        """Black clips of the backbone's input size for a mode, on its device: uint8 (clips, T, S, S, 3)."""
        size = (num_clips, num_frames, self.input_px_of(mode), self.input_px_of(mode), 3)
        return torch.zeros(size, dtype=torch.uint8, device=self.mean.device)

    def identity(self) -> dict[str, Any]:
        """Everything that determines the features: part of a store's fingerprint."""
        return {
            "backbone": self.name,
            "weights": self.weights_id,
            "frame_pooling": self.frame_pooling,
            "input_px": self.input_px,
            # Only if it is another one: stores of earlier versions have features of one size.
            **({} if self.eval_input_px == self.input_px else {"eval_input_px": self.eval_input_px}),
            "pixel_mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "pixel_std": [round(value, 6) for value in self.std.flatten().tolist()],
            "precision": self.precision,
            **self.details,
        }


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Indices of `count` evenly spaced frames out of `num_frames`, including the first and the last.

    A single frame is the middle one. The computation uses integers only and rounds halves up, so that every
    machine selects the same frames.
    """
    assert 1 <= count <= num_frames, f"{count} of {num_frames} frames"
    if count == 1:
        return [(num_frames - 1) // 2]
    return [(2 * index * (num_frames - 1) + count - 1) // (2 * (count - 1)) for index in range(count)]


def require_frames(name: str, needed: int | None, num_frames: int | None) -> None:
    """Refuse clips that are too short for a backbone.

    Raises
    ------
    UserError
        If the backbone needs more frames than a clip has.
    """
    if needed is not None and num_frames is not None and num_frames < needed:
        raise UserError(
            f"frames: backbone {name} expected at least {needed} frames per clip, found {num_frames}; "
            f"give --frames {needed}"
        )


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(tuple(values) if len(values) == 3 else tuple(values) * 3, dtype=torch.float32)


def _pool_frames(features_CTD: Tensor, pooling: str) -> Tensor:
    mean = features_CTD.mean(1)
    if pooling == "mean":
        return mean
    if features_CTD.shape[1] == 1:
        return torch.cat([mean, torch.zeros_like(mean), torch.zeros_like(mean)], 1)
    std = features_CTD.std(1, correction=0)
    change = features_CTD.diff(dim=1).abs().mean(1)
    return torch.cat([mean, std, change], 1)
