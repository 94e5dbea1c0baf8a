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
from scale_ray.errors import RunFailed

# CUDA's libraries report a lack of memory as errors of their own, CPUs as a RuntimeError.
_NO_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "not enough memory")


class FeatureExtractor:
    """A backbone with one copy per device, to which batches of `batch_clips` clips are dealt out.

    If a device's memory does not hold a batch, the batch is halved; `batch_clips` is the size used from then on.

    Raises
    ------
    RunFailed
        If a device's memory does not hold the backbone.
    """

    def __init__(self, backbone: Backbone, devices: Sequence[torch.device], batch_clips: int) -> None:
        self.name, self.input_px_of, self.batch_clips = backbone.name, backbone.input_px_of, batch_clips
        self._devices = devices
        self._copies = [_copy_on(backbone, device) for device in devices]

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """The features of clips, uint8 (clips, T, S, S, 3), as float16 (clips, D); the clips may be read-only.

        Raises
        ------
        RunFailed
            If a device's memory does not even hold a single clip.
        """
        batches = [clips[start : start + self.batch_clips] for start in range(0, len(clips), self.batch_clips)]
        places = [number % len(self._copies) for number in range(len(batches))]
        if len(self._copies) == 1:
            features = [self._features_of_batch(batch, 0) for batch in batches]
        else:
            with ThreadPoolExecutor(len(self._copies)) as threads:
                features = list(threads.map(self._features_of_batch, batches, places))
        return torch.cat([batch.cpu() for batch in features]).to(torch.float16).numpy()

    def _features_of_batch(self, clips: np.ndarray, place: int) -> Tensor:
        try:
            return self._forward(clips, place)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(clips) == 1:
                raise RunFailed(
                    f"backbone {self.name}: expected memory for at least one clip of {clips.shape[1]} frames and "
                    f"{clips.shape[2]} px, found too little on device {self._devices[place]}; use a device with more, "
                    "a smaller backbone, or --precision float16"
                ) from error
        # Outside of `except`: the exception would keep the tensors of the failed attempt.
        if self._devices[place].type == "cuda":
            torch.cuda.empty_cache()
        half = -(-len(clips) // 2)
        self.batch_clips = min(self.batch_clips, half)
        return torch.cat([self._features_of_batch(part, place).cpu() for part in (clips[:half], clips[half:])])

    def _forward(self, clips: np.ndarray, place: int) -> Tensor:
        with warnings.catch_warnings():
            # Arrays in Ray's object store are read-only, and are only read here.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return self._copies[place](torch.from_numpy(clips).to(self._devices[place]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or that of the machine, did not hold something."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def devices_here() -> list[torch.device]:
    """All GPUs that this process sees, otherwise the CPU."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return gpus or [torch.device("cpu")]


def _copy_on(backbone: Backbone, device: torch.device) -> Backbone:
    try:
        return copy.deepcopy(backbone).to(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailed(
            f"backbone {backbone.name}: expected memory for its weights, found too little on device {device}; use a "
            "device with more, a smaller backbone, or --precision float16"
        ) from error
