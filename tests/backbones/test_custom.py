"""A backbone from a user's own function."""

import pytest
import torch

from scale_ray.backbones import backbone_facts, load_backbone
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

MODULE = """
import torch
from torch import nn
from scale_ray.backbones import Backbone


class Colours(nn.Module):
    input_px = 8

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, clips):
        return self.linear(clips.mean((2, 3, 4)))


def colours():
    return Colours()


def weighed(weights):
    model = Colours()
    model.linear.weight.data.fill_(float(len(weights)))
    model.mean, model.std, model.num_frames = (0.5,), (0.5,), 2
    return model


def frames():
    trunk = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    return Backbone("mine", trunk, sees_video=False, input_px=8, mean=(0.0,), std=(1.0,))


def number():
    return 3


def without_size():
    return nn.Identity()


def flat():
    model = nn.Flatten(0)
    model.input_px = 8
    return model


def breaks():
    raise ZeroDivisionError("oops")


def wants(path):
    return path
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_backbones.py").write_text(MODULE)
    (tmp_path / "broken_backbones.py").write_text("import module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    monkeypatch.delitem(__import__("sys").modules, "own_backbones", raising=False)


def own(name: str, **options) -> BackboneOptions:
    return BackboneOptions(**{"backbone": f"own_backbones:{name}"} | options)


def clips(frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, frames, 8, 8, 3), generator=generator, dtype=torch.uint8)


def test_a_module_that_a_function_returns_is_a_backbone():
    backbone = load_backbone(own("colours"), 4)
    images = (clips() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    expected = backbone.trunk.linear(images.mean((1, 2, 3)))
    torch.testing.assert_close(backbone(clips()), expected, rtol=1e-4, atol=1e-5)
    identity = backbone.identity()
    assert identity["backbone"] == "own_backbones:colours"
    assert identity["weights"].startswith("sha256:")
    # The random weights that the function creates are seeded.
    assert load_backbone(own("colours"), 4).identity() == identity != load_backbone(own("colours", backbone_seed=1), 4)
    assert load_backbone(own("colours", backbone_seed=1), 4).weights_id != identity["weights"]


def test_weights_are_handed_over_and_told_apart():
    short, long = (load_backbone(own("weighed", weights=weights), 4) for weights in ("a", "default"))
    assert short.trunk.linear.weight.unique().item() == 1
    assert long.trunk.linear.weight.unique().item() == len("default")
    assert short.weights_id != long.weights_id
    assert (short.num_frames, short.identity()["pixel_mean"]) == (2, [0.5] * 3)
    torch.testing.assert_close(short(clips(4)), short(clips(4)[:, [0, 3]]))


def test_a_backbone_that_a_function_returns_follows_the_options():
    plain = load_backbone(own("frames"), 4)
    torch.testing.assert_close(plain(clips()), (clips() / 255).mean((1, 2, 3)))
    changed = load_backbone(own("frames", frame_pooling="moments", pixel_mean=(0.5,), precision="bfloat16"), 4)
    assert changed(clips()).shape == (2, 9)
    assert changed.identity() == {
        "backbone": "own_backbones:frames",
        "weights": plain.weights_id,
        "frame_pooling": "moments",
        "input_px": 8,
        "pixel_mean": [0.5] * 3,
        "pixel_std": [1.0] * 3,
        "precision": "bfloat16",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (own("absent"), "expected a function 'absent' in own_backbones, found none"),
        (own("number"), "expected own_backbones:number to return a Backbone or an nn.Module, found int"),
        (own("without_size"), "expected an int attribute input_px .*, found None"),
        (own("flat"), r"to map 2 clips of 4 frames and 8 px to shape \(2, D\), found \(1536,\)"),
        (own("breaks"), "own_backbones:breaks failed: ZeroDivisionError: oops"),
        (own("wants"), "to take no parameters or only weights, found path"),
        (own("colours", weights="w.pth"), "own_backbones:colours takes no weights, found 'w.pth'"),
        (own("weighed", backbone="own_backbones:weighed"), "own_backbones:weighed expected at least 2 frames"),
        (BackboneOptions(backbone="no_such_module:f"), "importable module 'no_such_module' .*; install it, or put"),
        (BackboneOptions(backbone="broken_backbones:f"), "found no module named 'module_that_nobody_has'"),
    ],
    ids=lambda value: value.backbone if isinstance(value, BackboneOptions) else "",
)
def test_what_does_not_keep_the_contract_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_backbone(options, 1 if "weighed" in options.backbone else 4)


def test_the_figures_of_a_users_own_are_listed():
    facts = backbone_facts(own("colours"))
    assert (facts.feature_width, facts.input_px, facts.frames) == (5, 8, None)
    assert facts.parameters_millions == pytest.approx(20e-6)
