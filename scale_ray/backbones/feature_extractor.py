"""Clips in, features out, on all devices of a process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from scale_ray.backbones.backbone import Backbone


class FeatureExtractor:
    """A backbone with one copy per device, to which batches of `batch_clips` clips are dealt out."""

    def __init__(self, backbone: Backbone, devices: Sequence[torch.device], batch_clips: int) -> None:
        self.input_px = backbone.input_px
        self._devices, self._batch_clips = devices, batch_clips
        self._copies = [copy.deepcopy(backbone).to(device) for device in devices]

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """The features of clips, uint8 (clips, T, S, S, 3), as float16 (clips, D); the clips may be read-only."""
        numbers = range(-(-len(clips) // self._batch_clips))
        if len(self._copies) == 1:
            features = [self._features_of_batch(clips, number) for number in numbers]
        else:
            with ThreadPoolExecutor(len(self._copies)) as threads:
                features = list(threads.map(lambda number: self._features_of_batch(clips, number), numbers))
        return torch.cat([batch.cpu() for batch in features]).to(torch.float16).numpy()

    def _features_of_batch(self, clips: np.ndarray, number: int) -> Tensor:
        batch = clips[number * self._batch_clips : (number + 1) * self._batch_clips]
        device = number % len(self._copies)
        with warnings.catch_warnings():
            # Arrays in Ray's object store are read-only, and are only read here.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return self._copies[device](torch.from_numpy(batch).to(self._devices[device]))


def devices_here() -> list[torch.device]:
    """All GPUs that this process sees, otherwise the CPU."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return gpus or [torch.device("cpu")]
