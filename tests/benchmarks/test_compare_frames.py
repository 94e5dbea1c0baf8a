"""The comparison with FFmpeg finds frames that are off by one, and no error where there is none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from support.videos import KEPT_BACK, encode, picture

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def compare_frames(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compare_frames

    return compare_frames


def reference(compare_frames, numbers, times_s):
    frames = np.stack([picture(number, 48, 48) for number in numbers])
    brightness = compare_frames._brightness(frames)
    return compare_frames.Reference(frames, brightness, np.array(times_s), 30.0, "stamps", float(times_s[-1]))


@pytest.mark.parametrize(
    ("time_s", "delivered", "off"),
    [
        (1.01, 30, {}),
        (1.01, 31, {"1": 1}),
        (1.01, 29, {"-1": 1}),
        (1.01, 40, {"2 or more": 1}),
        (1.01, 199, {"2 or more": 1}),
        (1.0, 29, {}),  # the clocks may round differently
        (99.0, 199, {}),
    ],
)
def test_a_delivered_frame_is_recognised(compare_frames, time_s, delivered, off):
    known = reference(compare_frames, range(200), np.arange(200) / 30)
    found = compare_frames.Comparison("a.mp4")
    compare_frames._check(found, known, "a plan", time_s, known.frames[delivered])
    assert (found.asked, found.off, found.other_picture) == (1, off, 0)
    assert bool(found.examples) == bool(off)


def test_a_frame_that_looks_the_same_is_no_error_and_an_upside_down_one_is_another_picture(compare_frames):
    known = reference(compare_frames, [0, 1, 2, 2, 2, 5], np.arange(6) / 30)
    found = compare_frames.Comparison("a.mp4")
    compare_frames._check(found, known, "a plan", 2.5 / 30, known.frames[4])
    assert (found.off, found.other_picture) == ({}, 0)
    compare_frames._check(found, known, "a plan", 2.5 / 30, known.frames[4][::-1])
    assert (found.off, found.other_picture) == ({}, 1)
    assert found.verdict() == "wrong frames"


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs the package imageio-ffmpeg")
def test_frames_are_those_of_ffmpeg_and_a_late_decoder_is_found(compare_frames, tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", **KEPT_BACK, seconds=4)
    found = compare_frames.compare(compare_frames.ffmpeg_of(None), path)
    assert (found.verdict(), found.num_ffmpeg, found.wrong) == ("equal", 120, 0)
    assert found.asked > 500
    whole = compare_frames.delivered

    def late(*arguments):
        times_s, frames, geometry = whole(*arguments)
        return times_s + 1 / 30, frames, geometry

    monkeypatch.setattr(compare_frames, "delivered", late)
    assert compare_frames.compare(compare_frames.ffmpeg_of(None), path).off["-1"] > 400


def test_without_ffmpeg_one_line_says_what_is_needed(compare_frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SystemExit, match="expected --ffmpeg PROGRAM or the package imageio-ffmpeg"):
        compare_frames.ffmpeg_of(None)
