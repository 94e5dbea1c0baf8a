"""The size of the input in mode eval: objects as large as in mode train, where a backbone takes any size."""

import pytest
import torch
from support.stores import FINGERPRINT
from torchvision import models

from scale_ray.backbones import Backbone, FeatureExtractor, load_backbone
from scale_ray.backbones.torchvision_models import (
    _ONE_SIZE_FAMILIES,
    _require_fit,
    published,
    sees_video,
    torchvision_names,
)
from scale_ray.config import BackboneOptions, Sampling
from scale_ray.console import Console
from scale_ray.embedding.video_model import backbone_of
from scale_ray.errors import UserError
from scale_ray.extraction import open_targets
from scale_ray.extraction.targets import loading_options
from scale_ray.store import FeatureStore, fingerprint_of

SCALE = Sampling().eval_scale


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of weights, which are trained ones to the loader."""
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.manual_seed(0)
    torch.save(models.shufflenet_v2_x0_5(weights=None).state_dict(), path)
    return str(path)


def tiny(weights: str = "none", **options) -> BackboneOptions:
    return BackboneOptions(**{"backbone": "shufflenet_v2_x0_5", "weights": weights, "input_px": 64} | options)


def sized(input_px: int, step_px: int | None) -> Backbone:
    backbone = Backbone("b", torch.nn.Identity(), input_px=input_px, size_step_px=step_px)
    backbone.scale_eval_input(SCALE)
    return backbone


@pytest.mark.parametrize(
    ("input_px", "step_px", "eval_px"),
    [
        *((224, 1, 256), (112, 1, 128), (64, 1, 73), (16, 1, 18)),
        *((224, 16, 256), (224, 14, 252), (32, 32, 32)),
        *((224, None, 224), (64, None, 64)),
    ],
)
def test_eval_crops_are_fed_at_the_scale_of_train(input_px, step_px, eval_px):
    """A box of 224 of a short side of 256 px at P px; the whole short side at 256 / 224 P, if the trunk takes it."""
    backbone = sized(input_px, step_px)
    assert [backbone.input_px_of(mode) for mode in ("train", "augmented", "eval")] == [input_px, input_px, eval_px]
    assert backbone.black_clips(1, 2, "eval").shape == (1, 2, eval_px, eval_px, 3)
    recorded = {} if eval_px == input_px else {"eval_input_px": eval_px}
    assert {name: size for name, size in backbone.identity().items() if name == "eval_input_px"} == recorded


def test_the_scale_is_that_of_the_crops_of_train():
    assert SCALE == 256 / 224
    assert Sampling(crop_px=128, scale_min_px=160).eval_scale == 160 / 128


def test_the_size_can_be_given_and_one_that_does_not_fit_is_refused(weights):
    trained = tiny(weights)
    assert load_backbone(trained, 3).eval_input_px == 64, "without a scale as in the other modes"
    assert load_backbone(trained, 3, SCALE).eval_input_px == 73
    assert load_backbone(tiny(), 3, SCALE).eval_input_px == 64, "random weights are for one size"
    same = tiny(weights, eval_input_px=64)
    assert load_backbone(same, 3, SCALE).identity() == load_backbone(trained, 3).identity()
    assert load_backbone(tiny(eval_input_px=96), 3, SCALE).eval_input_px == 96
    fixed = tiny(backbone="vit_b_32")
    assert load_backbone(fixed, 1, SCALE).eval_input_px == 64
    with pytest.raises(UserError, match="eval_input_px: vit_b_32 expected 64 px, found 128"):
        load_backbone(tiny(backbone="vit_b_32", eval_input_px=128), 1, SCALE)


def test_an_extractor_takes_clips_of_either_size(weights):
    backbone = load_backbone(tiny(weights), 2, SCALE)
    extractor = FeatureExtractor(backbone, [torch.device("cpu")], 4)
    for mode, size_px in (("train", 64), ("eval", 73)):
        clips = backbone.black_clips(3, 2, mode).numpy()
        assert clips.shape[2] == extractor.input_px_of(mode) == size_px
        assert extractor(clips).shape == (3, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_names())
def test_every_torchvision_model_takes_the_size_that_it_is_said_to_take(name):
    """Checked with shapes alone; models of one size refuse another."""
    input_px, frames = published(name).input_px, 16 if sees_video(name) else 1
    larger_px = round(input_px * SCALE)
    if name.startswith(_ONE_SIZE_FAMILIES):
        with pytest.raises(UserError, match="input_px"):
            _require_fit(name, frames, larger_px, input_px)
    else:
        _require_fit(name, frames, larger_px, input_px)


def test_a_store_of_an_earlier_version_is_not_mixed_with_features_of_another_size(tmp_path, weights):
    """It has features of one size, and says nothing of eval; with the old size it goes on."""
    sampling, options = Sampling(), tiny(weights)
    earlier = fingerprint_of(load_backbone(options, 16).identity(), sampling)
    FeatureStore.create(str(tmp_path / "store"), earlier)
    with (
        pytest.raises(UserError, match=r"eval_input_px None in the store, 73 asked for"),
        open_targets(str(tmp_path / "store"), options, sampling, Console(quiet=True)),
    ):
        pass
    with open_targets(str(tmp_path / "store"), tiny(weights, eval_input_px=64), sampling, Console(quiet=True)) as [
        target
    ]:
        assert target.encoder.eval_input_px == 64
    del earlier["sampling"]["augmented"]["blur_short_px"]
    FeatureStore.create(str(tmp_path / "older"), earlier)
    with (
        pytest.raises(UserError, match=r"sampling.augmented.blur_short_px None in the store, 256 asked for"),
        open_targets(str(tmp_path / "older"), tiny(weights, eval_input_px=64), sampling, Console(quiet=True)),
    ):
        pass


def test_an_aggregator_embeds_videos_at_the_size_of_its_own_features(weights):
    """One of an earlier version records none: its features of eval were made at the size of the input."""
    backbone = load_backbone(tiny(weights), 16, SCALE)
    origin = {**FINGERPRINT, **backbone.identity(), "made_with": loading_options(tiny(weights))}
    assert backbone_of(origin).eval_input_px == 73
    del origin["eval_input_px"]
    assert backbone_of(origin).eval_input_px == 64
