import numpy as np
import pytest
import torch
from torch import nn

from scale_ray.backbones import Backbone, FeatureExtractor


def backbone() -> Backbone:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv3d(3, 8, 3, stride=4), nn.Flatten())
    return Backbone("small", trunk, input_px=16)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("num_clips", [1, 4, 7])
def test_features_are_those_of_the_backbone_in_the_order_of_the_clips(num_devices, num_clips, rng):
    clips = rng.integers(0, 256, (num_clips, 4, 16, 16, 3), np.uint8)
    clips.flags.writeable = False
    features = FeatureExtractor(backbone(), [torch.device("cpu")] * num_devices, batch_clips=2)(clips)
    expected = backbone()(torch.from_numpy(clips.copy()))
    assert features.dtype == np.float16
    np.testing.assert_allclose(features, expected.numpy(), atol=2e-3)


def test_every_device_has_a_copy_and_takes_its_turn(rng):
    extractor = FeatureExtractor(backbone(), [torch.device("cpu")] * 2, batch_clips=1)
    with torch.no_grad():
        for parameter in extractor._copies[1].parameters():
            parameter.zero_()
    features = extractor(rng.integers(0, 256, (4, 4, 16, 16, 3), np.uint8))
    np.testing.assert_array_equal(features[1::2], 0)
    assert (features[::2] != 0).any(axis=1).all()
