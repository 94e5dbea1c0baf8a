"""The made videos of `benchmarks/composition.py` are the same every time, and differ by the order of motions alone."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from scale_ray.config import CorpusOptions
from scale_ray.corpus import read_corpus

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ("--epochs", 1, "--batch", 32, "--width", 32, "--heads", 32, "--probe-steps", 1, "--probe-epochs", 1)


@pytest.fixture
def composed(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("composed_videos")


@pytest.fixture
def composition(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("composition")


def test_the_arrangements_of_a_pair_have_the_same_motions(composed):
    compositions = [composed.composition_of(number) for number in range(18)]
    assert len({composition.columns()["label"] for composition in compositions}) == 18
    of_pair = {pair: [c for c in compositions if c.pair == pair] for pair in composed.PAIRS}
    for pair, arranged in of_pair.items():
        assert len(arranged) == 6
        assert all(Counter(c.sequence) == {pair[0]: 2, pair[1]: 2} for c in arranged)
    sequences = {composition.sequence for composition in compositions}
    assert all(sequence[::-1] in sequences for sequence in sequences), "every order has its opposite"


def test_a_video_of_another_class_differs_in_nothing_but_its_motions(composed, monkeypatch):
    moments, num_frames = composed.timeline(3)
    frames = composed.render(3)
    other = composed.composition_of(16)
    assert not set(other.pair) <= set(composed.composition_of(3).pair)
    monkeypatch.setattr(composed, "composition_of", lambda number: other)
    other_moments, other_num_frames = composed.timeline(3)
    assert num_frames == other_num_frames == len(frames)
    assert [vars(m) | {"motion": ""} for m in moments] == [vars(m) | {"motion": ""} for m in other_moments]
    moving = np.zeros(num_frames, bool)
    for moment, other_moment in zip(moments, other_moments, strict=True):
        moving[moment.start : moment.end] = moment.motion != other_moment.motion
    same = (frames == composed.render(3)).all((1, 2, 3))
    assert same[~moving].all(), "at rest, and in equal motions, both look alike"
    assert (~same[moving]).mean() > 0.9


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_video_is_the_same_every_time(composed, tmp_path):
    rendered = composed.render(5)
    assert (rendered == composed.render(5)).all()
    # The encoder does not always write the same bytes: its frames are as good as those rendered.
    decoded = frames_of(composed.write_composed(tmp_path, 5))
    assert decoded.shape == rendered.shape
    assert np.abs(decoded.astype(int) - rendered).mean() < 8
    other = composed.render(5, seed=1)
    assert other.shape != composed.render(5).shape or (other != composed.render(5)).any()


def test_motions_are_longer_than_a_clip_and_rests_longer_than_half_of_one(composed):
    clip_frames = 16
    for number in range(50):
        moments, num_frames = composed.timeline(number)
        edges = [0, *(edge for moment in moments for edge in (moment.start, moment.end)), num_frames]
        lengths = np.diff(edges)
        assert (lengths[1::2] > clip_frames).all()
        assert (lengths[::2] > clip_frames / 2).all()


def test_the_manifest_has_all_classes_in_both_subsets(composed, tmp_path):
    number_of_videos = 18 * 5
    (tmp_path / "videos").mkdir()
    for number in range(number_of_videos):
        (tmp_path / "videos" / f"{number:05d}.mp4").write_bytes(b"x")
    manifest = composed.write_manifest(tmp_path, number_of_videos)
    rows = read_corpus(str(manifest), CorpusOptions()).videos.to_pylist()
    subsets = {
        subset: [row for row in rows if dict(row["splits"])["default"] == subset] for subset in ("train", "test")
    }
    for subset, count in (("train", 4), ("test", 1)):
        for column, values in (("label", 18), ("motions", 3), ("arrangement", 6)):
            counts = Counter(row[column] for row in subsets[subset])
            assert set(counts.values()) == {count * 18 // values}, (subset, column)


def test_an_ideal_feature_tells_the_motion_of_its_clip(composed, composition):
    sampling = composition.Sampling(frames=8, stride=2)
    video = composition.ideal_features(0, "train", sampling, appearance=0.0, noise=0.0)
    motions = np.random.default_rng(0).normal(size=(3, 64))
    moments, _ = composed.timeline(0)
    times_s = video.positions[:, 5:]
    inside = 0
    for moment in moments:
        within = (times_s[:, 0] * 30 >= moment.start) & (times_s[:, 1] * 30 < moment.end - 1)
        expected = motions[composed.MOTIONS.index(moment.motion)]
        np.testing.assert_allclose(video.features[within], np.tile(expected, (within.sum(), 1)), atol=2e-3)
        inside += within.sum()
    assert inside > 4


def test_videos_are_made_and_listed(composition, tmp_path, monkeypatch):
    arguments = ["--folder", str(tmp_path), "make", "--videos", "3", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", ["composition.py", *arguments])
    composition.main()
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 3
    assert len((tmp_path / "videos_3.csv").read_text().splitlines()) == 4


def test_ideal_features_are_measured(composition, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    monkeypatch.setattr(composition, "RESULTS", results)
    common = ["composition.py", "--folder", str(tmp_path), "--save"]
    for part in (
        ["ideal", "--videos", "90"],
        ["measure", "--store", "ideal", "--only", "table,videos", *map(str, TINY)],
    ):
        monkeypatch.setattr(sys, "argv", [*common, *part, *(["--halvings", "1"] if part[0] == "measure" else [])])
        composition.main()
    saved = json.loads((results / "composition.json").read_text())["ideal"]
    assert set(saved) == {"table", "videos"}
    table = saved["table"]["figures"]
    assert {target: table[target]["classes"] for target in table} == {"label": 18, "motions": 3, "arrangement": 6}
    assert (table["label"]["training_videos"], table["label"]["test_videos"]) == (72, 18)
    assert len(table["label"]["rows"]) == 5
    assert list(saved["videos"]["figures"]) == ["36", "0"]


def test_an_unknown_part_of_the_measurement_is_refused(composition, tmp_path):
    given = argparse.Namespace(only="table,nothing", folder=tmp_path)
    with pytest.raises(SystemExit, match="found nothing"):
        composition.measure(given)
