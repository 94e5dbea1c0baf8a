import itertools

import pytest

from scale_ray.clips import VideoGeometry, plan_clips
from scale_ray.config import Sampling

WIDE = VideoGeometry(height_px=240, width_px=426, duration_s=10.0, fps=25.0)


def test_a_plan_depends_on_identity_mode_and_seed_alone():
    plan = plan_clips("a/b.mp4", "train", WIDE, Sampling())
    assert plan == plan_clips("a/b.mp4", "train", WIDE, Sampling())
    assert plan != plan_clips("a/c.mp4", "train", WIDE, Sampling())
    assert plan != plan_clips("a/b.mp4", "train", WIDE, Sampling(sampling_seed=1))


def test_the_draws_are_pinned():
    """Different numbers would change the content of every store and need a new store format."""
    clip = plan_clips("pinned.mp4", "train", WIDE, Sampling())[0]
    assert clip.times_s[0] == pytest.approx(4.980175979765797)
    assert clip.box_px == (52, 108, 229, 285)
    assert clip.flipped is False


def test_random_clips_stay_inside_the_video():
    for number in range(50):
        for clip in plan_clips(str(number), "train", WIDE, Sampling()):
            y0, x0, y1, x1 = clip.box_px
            assert 0 <= y0 < y1 <= WIDE.height_px + 1e-6
            assert 0 <= x0 < x1 <= WIDE.width_px + 1
            assert y1 - y0 == pytest.approx(x1 - x0)
            assert 224 / 320 - 1e-6 <= (y1 - y0) / WIDE.height_px <= 224 / 256 + 1e-6
            assert clip.times_s[0] >= 0
            assert clip.times_s[-1] <= WIDE.duration_s


def test_about_half_of_the_random_clips_are_flipped():
    flips = [clip.flipped for number in range(100) for clip in plan_clips(str(number), "train", WIDE, Sampling())]
    assert 0.45 < sum(flips) / len(flips) < 0.55


def test_frames_are_spaced_as_in_the_paper():
    times = plan_clips("x", "train", WIDE, Sampling())[0].times_s
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == 16
    assert gaps == pytest.approx([63 / 15 / 30] * 15)


def test_evaluation_clips_cover_five_starts_and_three_places():
    plan = plan_clips("x", "eval", WIDE, Sampling())
    assert len(plan) == 15
    span = 64 / 30
    assert sorted({round(clip.times_s[0], 6) for clip in plan}) == pytest.approx(
        [(10 - span) * part / 5 for part in range(5)], abs=1e-6
    )
    assert [clip.box_px for clip in plan[:3]] == [(0, 0, 240, 240), (0, 93, 240, 333), (0, 186, 240, 426)]
    assert not any(clip.flipped for clip in plan)


def test_a_tall_video_is_cropped_along_its_height():
    tall = VideoGeometry(height_px=426, width_px=240, duration_s=10.0, fps=25.0)
    assert [clip.box_px for clip in plan_clips("x", "eval", tall, Sampling())[:3]] == [
        (0, 0, 240, 240),
        (93, 0, 333, 240),
        (186, 0, 426, 240),
    ]


def test_a_short_video_starts_at_zero():
    short = VideoGeometry(height_px=100, width_px=100, duration_s=0.5, fps=25.0)
    assert {clip.times_s[0] for clip in plan_clips("x", "train", short, Sampling())} == {0.0}
