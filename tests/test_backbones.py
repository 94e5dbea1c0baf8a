import pickle
import urllib.error

import pytest
import torch
from torchvision import models

from scale_ray.backbones import backbone_names, load_backbone
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError


def tiny(**options) -> BackboneOptions:
    return BackboneOptions(**{"backbone": "shufflenet_v2_x0_5", "weights": "none", "input_px": 32} | options)


def clips(count: int, frames: int = 3, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, frames, side, side, 3), generator=generator, dtype=torch.uint8)


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
    features = load_backbone(tiny(backbone=name, input_px=64), 3)(clips(8, side=64))
    assert features.dtype == torch.float32
    assert 1e-3 < features.half().float().std(0).mean() < 1e3


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("shufflenet_v2_x0_5", 1024),
        ("mobilenet_v2", 1280),
        ("mobilenet_v3_small", 576),
        ("squeezenet1_0", 512),
        ("resnet18", 512),
        ("vgg11", 512),
        ("efficientnet_b0", 1280),
        ("convnext_tiny", 768),
        ("densenet121", 1024),
        ("regnet_y_400mf", 440),
    ],
)
def test_image_models_are_cut_before_their_classifier(name, width):
    assert load_backbone(tiny(backbone=name, input_px=64), 2).feature_width(2) == width


@pytest.mark.parametrize(("name", "width"), [("r3d_18", 512), ("s3d", 1024), ("swin3d_t", 768)])
def test_video_models_are_cut_before_their_classifier(name, width):
    side = 224 if name == "s3d" else 64
    assert load_backbone(tiny(backbone=name, input_px=side), 16).feature_width(16) == width


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
    each = torch.stack([load_backbone(tiny(), 3)(clips(2)[:, frame : frame + 1]) for frame in range(3)], 1)
    torch.testing.assert_close(moments[:, :1024], mean)
    torch.testing.assert_close(moments[:, 1024:2048], each.std(1, correction=0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(moments[:, 2048:], each.diff(dim=1).abs().mean(1), atol=1e-4, rtol=1e-3)


def test_weights_have_an_identity_of_their_content(tmp_path):
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.pth")
        torch.save(models.shufflenet_v2_x0_5().state_dict(), paths[-1])
    ids = [load_backbone(tiny(weights=str(path)), 3).weights_id for path in (*paths, paths[0])]
    assert ids[0] == ids[2] != ids[1]


class _Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_file_that_would_execute_something_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(UserError, match="expected a file of tensors alone"):
        load_backbone(tiny(weights=str(path)), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "r3d_81"}, "such as r3d_18.*found 'r3d_81'"),
        ({"weights": "/nowhere.pth"}, "found no file '/nowhere.pth'"),
        ({"backbone": "mvit_v2_s", "input_px": None}, "mvit_v2_s expected 16 frames a clip, found 3"),
    ],
)
def test_what_cannot_be_loaded_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_backbone(tiny(**options), 3)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit shufflenet_v2_x0_5: expected .* missing"):
        load_backbone(tiny(weights=str(tmp_path / "w.pth")), 3)


def test_weights_that_cannot_be_downloaded_are_said_in_one_line(capsys, monkeypatch):
    def unreachable(*_, **__):
        print("Downloading ...")
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match=r"cannot be reached \(no route\); give --weights FILE, or --weights none"):
        load_backbone(tiny(weights="default"), 3)
    assert capsys.readouterr().out == ""


def test_every_listed_name_is_of_torchvision():
    assert {"r3d_18", "mvit_v2_s", "mobilenet_v3_small", "vit_b_16"} <= set(backbone_names())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mobilenet_v2", "mobilenet_v2-imagenet.pth"),
        ("squeezenet1_0", "squeezenet1_0-imagenet.pth"),
    ],
)
def test_real_weights_load_strictly(real_media, name, file):
    backbone = load_backbone(tiny(backbone=name, weights=str(real_media / "weights" / file), input_px=64), 3)
    assert backbone.weights_id.startswith("sha256:")
    assert torch.isfinite(backbone(clips(2, side=64))).all()
