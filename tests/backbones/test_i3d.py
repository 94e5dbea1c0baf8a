"""I3D: three layouts of its files, TensorFlow's padding, and the real weights on real videos."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scale_ray.backbones import load_backbone
from scale_ray.backbones.i3d import I3D, _padded
from scale_ray.config import BackboneOptions, Sampling
from scale_ray.decoding.decode import decode_clips
from scale_ray.errors import UserError

BRANCHES = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1"}
# The last branch begins with the pool, which has no weights.
BRANCHES["b3"] = "branch_3.1"


class NormedConvolution(nn.Conv3d):
    """A convolution without bias, followed by a batch norm."""

    def __init__(self, plain: nn.Conv3d) -> None:
        super().__init__(plain.in_channels, plain.out_channels, plain.kernel_size, plain.stride, bias=False)
        self.bn = nn.BatchNorm3d(plain.out_channels, eps=1e-3, momentum=0.01)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.bn(super().forward(clips))


@pytest.fixture(scope="module")
def normed() -> I3D:
    """The network with batch norms that are not folded into its convolutions, with random statistics."""
    torch.manual_seed(0)
    model = I3D()
    for unit in [unit for unit in model.modules() if isinstance(getattr(unit, "conv", None), nn.Conv3d)]:
        unit.conv = NormedConvolution(unit.conv)
        nn.init.kaiming_normal_(unit.conv.weight, nonlinearity="relu")
        for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
            getattr(unit.conv.bn, name).data.uniform_(low, high)
        unit.conv.bn.running_var.uniform_(0.5, 1.5)
    return model.requires_grad_(False).eval()


def pytorch_i3d(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of pytorch-i3d: Mixed_3b.b1a.conv3d.weight, Mixed_3b.b3b.bn.running_mean."""
    named = {}
    for key, value in state.items():
        layer, _, part = key.partition(".conv.")
        layer = layer.replace(".b3", ".b3b")
        named[f"{layer}.{part}" if part.startswith("bn.") else f"{layer}.conv3d.{part}"] = value
    return named | {"logits.conv3d.weight": torch.ones(400, 1024, 1, 1, 1), "logits.conv3d.bias": torch.ones(400)}


def kinetics_i3d(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of kinetics_i3d_pytorch: mixed_3b.branch_1.0.conv3d.weight, conv3d_1a_7x7.batch3d.running_mean."""
    named = {}
    for key, value in state.items():
        layer, _, part = key.partition(".conv.")
        layer, _, branch = (layer[0].lower() + layer[1:]).partition(".")
        layer = f"{layer}.{BRANCHES[branch]}" if branch else layer
        part = part.replace("bn.", "batch3d.") if part.startswith("bn.") else f"conv3d.{part}"
        named[f"{layer}.{part}"] = value
    classifier = {"weight": torch.ones(400, 1024, 1, 1, 1), "bias": torch.ones(400)}
    # Files of that age lack the counters of batch norm.
    kept = {key: value for key, value in named.items() if not key.endswith("num_batches_tracked")}
    return kept | {f"conv3d_0c_1x1.conv3d.{key}": value for key, value in classifier.items()}


def i3d_options(weights: str, **others) -> BackboneOptions:
    return BackboneOptions(**{"backbone": "i3d", "weights": weights, "input_px": 33} | others)


def clips(count: int, frames: int, input_px: int = 33) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, frames, input_px, input_px, 3), generator=generator, dtype=torch.uint8)


def saved(path, state: dict[str, torch.Tensor]) -> str:
    torch.save(state, path)
    return str(path)


def test_files_of_all_layouts_give_the_features_of_the_network_with_its_batch_norms(tmp_path, normed):
    state = normed.state_dict()
    assert len(state) == 57 * 6
    first = load_backbone(i3d_options(saved(tmp_path / "a.pt", pytorch_i3d(state))), 5)
    second = load_backbone(i3d_options(saved(tmp_path / "b.pth", kinetics_i3d(state))), 5)
    folded = {f"body.{key}": value for key, value in first.trunk.state_dict().items()}
    head = {"head.weight": torch.ones(400, 1024, 1, 1, 1), "head.bias": torch.ones(400)}
    third = load_backbone(i3d_options(saved(tmp_path / "c.pt", folded | head)), 5)
    with torch.inference_mode():
        expected = normed((clips(2, 5).float() / 127.5 - 1).permute(0, 4, 1, 2, 3))
    assert expected.shape == (2, 1024)
    assert expected.std() > 0.01
    torch.testing.assert_close(first(clips(2, 5)), expected, rtol=1e-3, atol=1e-4)
    assert first.weights_id == second.weights_id == third.weights_id
    assert [backbone.notes[0] for backbone in (first, second, third)] == [
        "i3d: weights not used: logits (2 tensors)",
        "i3d: weights not used: conv3d_0c_1x1 (2 tensors)",
        "i3d: weights not used: head (2 tensors)",
    ]


def test_a_file_of_i3d_has_to_fit_strictly(tmp_path, normed):
    state = pytorch_i3d(normed.state_dict())
    for key, missing in [
        ("Mixed_4c.b1a.bn.running_var", "Mixed_4c.b1a.conv.bias"),
        ("Mixed_5b.b3b.conv3d.weight", "Mixed_5b.b3.conv.weight"),
    ]:
        incomplete = {other: value for other, value in state.items() if other != key}
        with pytest.raises(UserError, match=f"does not fit i3d: .*such as '{missing}'"):
            load_backbone(i3d_options(saved(tmp_path / "a.pt", incomplete)), 5)
    flow = copy.copy(state)
    flow["Conv3d_1a_7x7.conv3d.weight"] = torch.ones(64, 2, 7, 7, 7)
    with pytest.raises(UserError, match=r"1 of a different shape, such as 'Conv3d_1a_7x7.conv.weight'"):
        load_backbone(i3d_options(saved(tmp_path / "flow.pt", flow)), 5)
    with pytest.raises(UserError, match="i3d expected --weights FILE"):
        load_backbone(i3d_options("default"), 5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "front", "behind"),
    [
        (16, 7, 2, 2, 3),
        (15, 7, 2, 3, 3),
        (1, 7, 2, 3, 3),
        (4, 3, 2, 0, 1),
        (5, 3, 2, 1, 1),
        (1, 2, 2, 0, 1),
        (4, 2, 2, 0, 0),
    ],
)
def test_padding_is_that_of_tensorflow(size, kernel, stride, front, behind):
    padded = _padded(torch.ones(1, 1, size, 1, 1), (kernel, 1, 1), (stride, 1, 1)).flatten()
    assert padded.tolist() == [0.0] * front + [1.0] * size + [0.0] * behind
    assert (len(padded) - kernel) // stride + 1 == -(-size // stride)


def test_i3d_takes_any_number_of_frames_and_any_size_and_random_weights_are_seeded():
    first, again, other = (load_backbone(i3d_options("none", backbone_seed=seed), None) for seed in (0, 0, 1))
    for frames, input_px in [(1, 16), (2, 33), (9, 20)]:
        assert first(clips(1, frames, input_px)).shape == (1, 1024)
    features = first(clips(2, 3))
    torch.testing.assert_close(features, again(clips(2, 3)))
    assert not torch.allclose(features, other(clips(2, 3)))
    assert first.identity() == again.identity() != other.identity()
    assert 0.01 < features.std() < 100
    assert first.size_step_px == 1


@pytest.mark.parametrize(
    ("video", "label"),
    [
        ("videos/ut_interaction/handshake/17_13_0.avi", "shaking hands"),
        ("videos/ut_interaction/handshake/17_3_0.avi", "shaking hands"),
        ("odd/video_features__v_ZNVhz7ctTq0.mp4", "walking the dog"),
    ],
)
def test_real_weights_name_real_videos(real_media, video, label):
    weights = real_media / "weights" / "i3d-kinetics400.pt"
    backbone = load_backbone(BackboneOptions(backbone="i3d", weights=str(weights)), 16)
    sampling = Sampling(eval_times=1, eval_crops=1)
    pixels = decode_clips(str(real_media / video), "id", "eval", sampling, [backbone.input_px]).pixels[0]
    head = torch.load(weights, weights_only=True)
    # Of 16 frames at 224 px, the classifier's average pool of 2 x 7 x 7 is the mean over everything.
    assert backbone.input_px == 224
    logits = F.linear(backbone(torch.from_numpy(pixels)), head["head.weight"].flatten(1), head["head.bias"])
    labels = (real_media / "weights" / "kinetics400-labels.txt").read_text().splitlines()
    assert labels[int(logits.argmax())] == label
