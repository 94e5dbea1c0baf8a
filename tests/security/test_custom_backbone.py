"""A function that the file of an aggregator names as its backbone does not run, unless the user trusts it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.attacks import refusal

from scale_ray.aggregator import Aggregator
from scale_ray.config import AggregatorOptions, BackboneOptions, Sampling
from scale_ray.embedding import VideoModel, backbone_note, backbone_of
from scale_ray.errors import UserError
from scale_ray.store import fingerprint_of

CODE = """
from pathlib import Path
Path({marker!r}).mkdir()
def network():
    raise RuntimeError("was called")
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that exists if the module of the aggregator's backbone was imported."""
    folder, marker = tmp_path / "code", tmp_path / "code-ran"
    folder.mkdir()
    (folder / "somebodys.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(folder)
    yield marker
    sys.modules.pop("somebodys", None)


def aggregator(name: str, **options: str) -> Aggregator:
    made_with = BackboneOptions(backbone=name, **options).to_dict()
    identity = {"backbone": name, "weights": "none", "frame_pooling": "mean", "input_px": 32}
    identity |= {"pixel_mean": [0.5], "pixel_std": [0.5], "precision": "float32"}
    origin = {**fingerprint_of(identity, Sampling()), "made_with": made_with}
    return Aggregator(8, AggregatorOptions(width=32, layers=1), origin)


@pytest.mark.parametrize("recorded", ["made_with", "fingerprint"])
def test_the_function_that_an_aggregator_names_does_not_run(recorded: str, marker: Path):
    origin = aggregator("somebodys:network").origin
    if recorded == "fingerprint":
        del origin["made_with"]
    message = refusal(lambda: backbone_of(origin, "none"))
    assert not marker.exists()
    assert "expected --trust-custom-backbone" in message


def test_nor_does_that_of_an_exported_model(marker: Path, tmp_path: Path):
    model = tmp_path / "model"
    aggregator("somebodys:network").save(str(model / "aggregator"))
    (model / "model.json").write_text('{"representing": {}, "backbone": "hash"}')
    message = refusal(lambda: VideoModel.load(str(model)))
    assert not marker.exists()
    assert "expected --trust-custom-backbone" in message


@pytest.mark.slow
def test_the_command_names_the_flag(marker: Path, tmp_path: Path, scale_ray):
    aggregator("somebodys:network").save(str(tmp_path / "somebodys" / "aggregator"))
    ended = scale_ray("export", "--checkpoint", tmp_path / "somebodys" / "aggregator", "--out", tmp_path / "model")
    assert ended.code == 2
    assert "backbone: runs somebodys:network, which the aggregator's file names" in ended.err
    assert "--trust-custom-backbone" in ended.err.splitlines()[-1]
    assert not marker.exists()


def test_a_trusted_function_runs(marker: Path):
    with pytest.raises(UserError, match="was called"):
        backbone_of(aggregator("somebodys:network").origin, trust_custom_backbone=True)
    assert marker.exists()


def test_what_a_name_would_load_is_said():
    assert backbone_note(aggregator("hf:somebody/network").origin) == (
        "backbone: loads hf:somebody/network, which the aggregator's file names"
    )
    assert backbone_note(aggregator("r3d_18").origin) is None
