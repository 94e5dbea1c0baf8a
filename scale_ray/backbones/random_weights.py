"""Seeded random weights: the baseline of a backbone that has learned nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed, on the side: building a model must not disturb anyone's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def settle_batch_norms(model: nn.Module, *, sees_video: bool, num_frames: int, input_px: int) -> None:
    """Give a random model's batch norms the statistics of smooth noise.

    Untouched, they pass everything through, and the features of deep narrow models vanish (1e-9 for
    mobilenet_v3_small), below what float16 can hold.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    frames = (num_frames,) if sees_video else ()
    coarse = torch.randn(8, 3, *(1 for _ in frames), 7, 7)
    noise = nn.functional.interpolate(coarse, size=(*frames, input_px, input_px))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average, so that one pass replaces what was there
    model.train()
    with torch.no_grad():
        model(noise)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
