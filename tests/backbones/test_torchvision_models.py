import pickle
import urllib.error

import pytest
import torch
from torchvision import models

from scale_ray.backbones import Backbone, backbone_facts, load_backbone
from scale_ray.backbones.backbone import evenly_spaced
from scale_ray.backbones.torchvision_models import shape_of, torchvision_names
from scale_ray.config import BackboneOptions, store_folder_name
from scale_ray.errors import UserError


def tiny(**options) -> BackboneOptions:
    return BackboneOptions(**{"backbone": "shufflenet_v2_x0_5", "weights": "none", "input_px": 32} | options)


def clips(count: int, frames: int = 3, input_px: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, frames, input_px, input_px, 3), generator=generator, dtype=torch.uint8)


def test_random_weights_are_seeded_and_leave_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_backbone(tiny(), 3)
    assert torch.equal(torch.rand(3), expected)
    torch.testing.assert_close(first(clips(2)), load_backbone(tiny(), 3)(clips(2)))
    assert not torch.allclose(first(clips(2)), load_backbone(tiny(backbone_seed=1), 3)(clips(2)))
    assert first.identity()["weights"] == "random, seed 0"


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1", "resnet18"])
def test_random_features_are_of_a_size_that_float16_holds(name):
    features = load_backbone(tiny(backbone=name, input_px=64), 3)(clips(8, input_px=64))
    assert features.dtype == torch.float32
    assert 1e-3 < features.half().float().std(0).mean() < 1e3


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("shufflenet_v2_x0_5", 1024),
        ("mobilenet_v3_small", 576),
        ("squeezenet1_0", 512),
        ("resnet18", 512),
        ("alexnet", 256),
        ("vit_b_32", 768),
        ("swin_t", 768),
    ],
)
def test_loaded_models_are_cut_before_their_classifier(name, width):
    assert load_backbone(tiny(backbone=name, input_px=64), 2).feature_width(2) == width


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mobilenet_v2", 1280),
        ("vgg11", 512),
        ("efficientnet_b0", 1280),
        ("convnext_tiny", 768),
        ("densenet121", 1024),
        ("regnet_y_400mf", 440),
        ("mnasnet0_5", 1280),
        ("vit_h_14", 1280),
        ("r3d_18", 512),
        ("r2plus1d_18", 512),
        ("s3d", 1024),
        ("swin3d_t", 768),
        ("mvit_v2_s", 768),
    ],
)
def test_every_family_is_cut_before_its_classifier(name, width):
    """Checked on the meta device: only shapes are computed."""
    facts = backbone_facts(BackboneOptions(backbone=name))
    trunk, shape_width = shape_of(name, facts.input_px)
    frames = (16,) if facts.sees_video else ()
    with torch.inference_mode():
        features = trunk(torch.zeros((1, 3, *frames, facts.input_px, facts.input_px), device="meta"))
    assert features.shape == (1, width)
    assert shape_width == facts.feature_width == width


def test_a_video_model_is_cut_before_its_classifier():
    assert load_backbone(tiny(backbone="r3d_18"), 4).feature_width(4) == 512


def test_the_hidden_output_is_the_classifiers_input(tmp_path):
    model = models.resnet18(num_classes=1000).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(tiny(backbone="resnet18", weights=str(tmp_path / "w.pth")), 1)
    pixels = clips(2, frames=1)
    images = (pixels[:, 0].permute(0, 3, 1, 2) / 255 - backbone.mean.view(1, 3, 1, 1)) / backbone.std.view(1, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(model.fc(backbone(pixels)), model(images), rtol=1e-4, atol=1e-4)


def test_moments_are_mean_spread_and_change_over_the_frames():
    mean = load_backbone(tiny(), 3)(clips(2))
    moments = load_backbone(tiny(frame_pooling="moments"), 3)(clips(2))
    per_frame = torch.stack([load_backbone(tiny(), 3)(clips(2)[:, frame : frame + 1]) for frame in range(3)], 1)
    torch.testing.assert_close(moments[:, :1024], mean)
    torch.testing.assert_close(moments[:, 1024:2048], per_frame.std(1, correction=0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(moments[:, 2048:], per_frame.diff(dim=1).abs().mean(1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "r3d_81"}, "such as r3d_18.*found 'r3d_81'"),
        ({"weights": "/nowhere.pth"}, "found no file '/nowhere.pth'"),
        ({"backbone": "mvit_v2_s", "input_px": None}, "mvit_v2_s expected at least 16 frames .* 3; give --frames 16"),
        ({"backbone": "mvit_v2_s"}, "expected a size that backbone mvit_v2_s accepts, found 32 px and 16 frames"),
        ({"backbone": "s3d", "input_px": 224}, "expected a size that backbone s3d accepts, found 224 px and 3 frames"),
        ({"backbone": "alexnet"}, "expected a size that backbone alexnet accepts, found 32 px"),
    ],
)
def test_what_cannot_be_loaded_is_refused(options, message):
    frames = 16 if options == {"backbone": "mvit_v2_s"} else 3
    with pytest.raises(UserError, match=message):
        load_backbone(tiny(**options), frames)


def test_weights_that_cannot_be_downloaded_are_said_in_one_line(capsys, monkeypatch):
    def unreachable(*_, **__):
        print("Downloading ...")
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match=r"cannot be reached \(no route\); give --weights FILE, or --weights none"):
        load_backbone(tiny(weights="default"), 3)
    assert capsys.readouterr().out == ""


def test_names_are_listed():
    assert {"r3d_18", "mvit_v2_s", "mobilenet_v3_small", "vit_b_16"} <= set(torchvision_names())


def test_a_vit_is_of_the_size_that_is_asked_for_or_that_its_weights_have(tmp_path):
    assert load_backbone(tiny(backbone="vit_b_32", input_px=64), 1).feature_width(1) == 768
    with pytest.raises(UserError, match="size that backbone vit_b_32 accepts, found 64 px"):
        load_backbone(tiny(backbone="vit_b_32", input_px=64, weights=str(tmp_path / "w.pth")), 1)


@pytest.mark.parametrize(
    ("num_frames", "count", "expected"),
    [
        (16, 8, [0, 2, 4, 6, 9, 11, 13, 15]),
        (32, 16, [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31]),
        (5, 5, [0, 1, 2, 3, 4]),
        (9, 2, [0, 8]),
        (9, 1, [4]),
        (4, 3, [0, 2, 3]),
    ],
)
def test_frames_are_evenly_spaced_with_the_first_and_the_last(num_frames, count, expected):
    assert evenly_spaced(num_frames, count) == expected


class _FramesSeen(torch.nn.Module):
    def forward(self, clips_B3TSS):
        return clips_B3TSS.mean((1, 3, 4))


def test_a_backbone_sees_as_many_frames_as_it_takes():
    backbone = Backbone("own", _FramesSeen(), input_px=8, num_frames=3, mean=(0.0,), std=(1 / 255,))
    pixels = torch.arange(7, dtype=torch.uint8).view(1, 7, 1, 1, 1).expand(2, 7, 8, 8, 3)
    assert backbone(pixels).tolist() == [[0, 3, 6]] * 2


def test_precision_is_a_part_of_the_identity_and_hardly_of_the_features():
    whole, half = (load_backbone(tiny(precision=precision), 3) for precision in ("float32", "float16"))
    assert {**whole.identity(), "precision": "float16"} == half.identity()
    features = half(clips(2))
    assert features.dtype == torch.float32
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    difference = (features - whole(clips(2))).abs().mean()
    assert 0 < difference < 0.05 * whole(clips(2)).abs().mean()
    with pytest.raises(UserError, match="one of float32, float16, bfloat16, found 'float64'"):
        tiny(precision="float64")


def test_a_backbone_travels():
    backbone = load_backbone(tiny(frame_pooling="moments"), 3)
    again = pickle.loads(pickle.dumps(backbone))
    torch.testing.assert_close(again(clips(2)), backbone(clips(2)))
    assert again.identity() == backbone.identity()


def test_figures_of_a_listing_are_those_of_the_backbone():
    facts = backbone_facts(BackboneOptions(backbone="shufflenet_v2_x0_5"), measure=True)
    plain = backbone_facts(BackboneOptions(backbone="shufflenet_v2_x0_5"))
    assert facts.seconds_per_clip is not None
    assert facts.gflop_per_clip == pytest.approx(plain.gflop_per_clip, rel=0.05)
    assert (facts.feature_width, facts.input_px, facts.frames) == (plain.feature_width, 224, None) == (1024, 224, None)
    num_millions = sum(parameter.numel() for parameter in load_backbone(tiny(), 3).parameters()) / 1e6
    assert facts.parameters_millions == plain.parameters_millions == pytest.approx(num_millions)
    moments = backbone_facts(BackboneOptions(backbone="shufflenet_v2_x0_5", frame_pooling="moments"))
    assert moments.feature_width == 3 * 1024


def test_several_backbones_in_one_call():
    both = BackboneOptions(backbone="r3d_18, hf:facebook/dinov2-small", weights="none")
    assert [(options.backbone, options.weights) for options in both.each()] == [
        ("r3d_18", "none"),
        ("hf:facebook/dinov2-small", "none"),
    ]
    separate = BackboneOptions(backbone="svt,r3d_18", weights="/w.pth,default", input_px=64).each()
    assert [(options.weights, options.input_px) for options in separate] == [("/w.pth", 64), ("default", 64)]
    assert BackboneOptions().each() == [BackboneOptions()]
    with pytest.raises(UserError, match=r"weights: expected one value for all or one for each of the 2 .*, found 3"):
        BackboneOptions(backbone="a,b", weights="none,none,none").each()
    with pytest.raises(UserError, match="different folders, found 'a-b' twice"):
        BackboneOptions(backbone="a:b,a/b").each()
    with pytest.raises(UserError, match="separated by single commas, found 'a,,b'"):
        BackboneOptions(backbone="a,,b").each()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("r3d_18", "r3d_18"),
        ("hf:facebook/dinov2-small", "hf-facebook-dinov2-small"),
        ("hf:/models/v1.5/", "hf-models-v1.5"),
        ("../..", "backbone"),
        ("my.models:own", "my.models-own"),
    ],
)
def test_a_backbones_folder_has_a_safe_name(name, folder):
    assert store_folder_name(name) == folder
