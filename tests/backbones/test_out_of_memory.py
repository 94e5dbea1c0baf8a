"""A device whose memory does not hold a batch: the batch is halved, and the features stay the same."""

import numpy as np
import pytest
import torch
from torch import nn

from scale_ray.backbones import Backbone, FeatureExtractor
from scale_ray.errors import RunFailed


class Small(nn.Module):
    """A trunk for which the memory holds at most `fits` clips."""

    def __init__(self, fits: int, error: Exception) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv3d(3, 8, 3, stride=4), nn.Flatten())
        self.fits, self.error, self.sizes = fits, error, []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) > self.fits:
            raise self.error
        return self.layers(pixels)


CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
ERRORS = [
    CUDA,
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    MemoryError(),
]


def extractor(fits: int, error: Exception = CUDA, *, batch_clips: int = 16, num_devices: int = 1) -> FeatureExtractor:
    backbone = Backbone("small", Small(fits, error), input_px=16)
    return FeatureExtractor(backbone, [torch.device("cpu")] * num_devices, batch_clips)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:30] or type(error).__name__)
def test_without_memory_the_batch_is_halved_until_it_fits(rng, error):
    clips = rng.integers(0, 256, (37, 4, 16, 16, 3), np.uint8)
    tight = extractor(5, error)
    features = tight(clips)
    np.testing.assert_allclose(features, extractor(64)(clips), atol=2e-3)
    assert tight.batch_clips == 4
    assert tight._copies[0].trunk.sizes[:4] == [16, 8, 4, 4]


def test_later_batches_begin_with_the_size_that_fits(rng):
    clips = rng.integers(0, 256, (16, 4, 16, 16, 3), np.uint8)
    tight = extractor(3)
    tight(clips)
    tight._copies[0].trunk.sizes.clear()
    tight(clips)
    assert tight._copies[0].trunk.sizes == [2] * 8


def test_halving_keeps_the_order_of_clips_on_several_devices(rng):
    clips = rng.integers(0, 256, (37, 4, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(extractor(3, num_devices=2)(clips), extractor(64)(clips), atol=2e-3)


def test_a_clip_that_does_not_fit_is_one_clear_line(rng):
    with pytest.raises(RunFailed, match="backbone small: expected memory for at least one clip of 4 frames and 16 px"):
        extractor(0)(rng.integers(0, 256, (8, 4, 16, 16, 3), np.uint8))


def test_weights_that_do_not_fit_are_one_clear_line(monkeypatch):
    def full(*_: object) -> None:
        raise CUDA

    backbone = Backbone("small", Small(1, CUDA), input_px=16)
    monkeypatch.setattr(Backbone, "to", full)
    with pytest.raises(RunFailed, match="backbone small: expected memory for its weights"):
        FeatureExtractor(backbone, [torch.device("cpu")], 4)


def test_another_error_of_a_backbone_is_not_taken_for_a_lack_of_memory(rng):
    with pytest.raises(RuntimeError, match="shapes"):
        extractor(1, RuntimeError("shapes do not match"))(rng.integers(0, 256, (8, 4, 16, 16, 3), np.uint8))
