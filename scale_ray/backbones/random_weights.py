"""Seeded random weights: the baseline of an untrained backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block, then restore the CPU generator: the caller's random numbers do not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def settle_batch_norms(model: nn.Module, *, sees_video: bool, num_frames: int, input_px: int) -> None:
    """Set the statistics of a random model's batch norms from one pass over smooth noise.

    With their initial statistics, batch norms normalise nothing, and the features of deep, narrow models vanish
    (1e-9 for mobilenet_v3_small), below the range of float16.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    noise = _smooth_noise((num_frames,) if sees_video else (), input_px)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average, so that one pass replaces the initial statistics
    model.train()
    with torch.no_grad():
        model(noise)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def standardise_convolutions(model: nn.Module, *, num_frames: int, input_px: int) -> None:
    """Scale the random convolutions of a video model without batch norms: mean 0 and variance 1 on smooth noise.

    Every channel's weights are divided by the standard deviation of its output, and the mean becomes its bias. Without
    it, the features vanish as described above.
    """

    def standardise(layer: Any, _: Any, output: Tensor) -> Tensor:
        axes = (0, 2, 3, 4)
        std, mean = torch.std_mean(output, axes)
        layer.weight.div_(std.view(-1, 1, 1, 1, 1))
        layer.bias.sub_(mean).div_(std)
        return (output - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)

    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv3d)]
    hooks = [layer.register_forward_hook(standardise) for layer in convolutions]
    with torch.no_grad():
        model(_smooth_noise((num_frames,), input_px))
    for hook in hooks:
        hook.remove()


def _smooth_noise(frames: tuple[int, ...], input_px: int) -> Tensor:
    """Noise of 8 clips (`frames` has their number of frames) or images (it is empty), of equal values in blocks."""
    coarse_noise = torch.randn(8, 3, *(1 for _ in frames), 7, 7)
    return nn.functional.interpolate(coarse_noise, size=(*frames, input_px, input_px))
