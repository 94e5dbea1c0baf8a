"""Seeded random weights: the baseline of an untrained backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


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
    frames = (num_frames,) if sees_video else ()
    coarse_noise = torch.randn(8, 3, *(1 for _ in frames), 7, 7)
    noise = nn.functional.interpolate(coarse_noise, size=(*frames, input_px, input_px))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average, so that one pass replaces the initial statistics
    model.train()
    with torch.no_grad():
        model(noise)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
