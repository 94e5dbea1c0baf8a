"""Mode augmented: the boxes, the appearances and their probabilities, and each change compared with torchvision's."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from scale_ray.clips import Appearance, Clip, VideoGeometry, plan_clips
from scale_ray.config import Sampling
from scale_ray.corpus.sample_videos import write_video
from scale_ray.decoding.augmentation import apply_augmentation
from scale_ray.decoding.decode import decode_clips

GEOMETRY = VideoGeometry(240, 320, 20.0, 30.0)
PLAIN = Appearance((), grey=False, blur_px=0.0)
NO_LOOKS = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0, "flip_probability": 0.0}


def plans(geometry: VideoGeometry = GEOMETRY, num_videos: int = 200, **options) -> list[Clip]:
    sampling = Sampling(**options)
    return [c for n in range(num_videos) for c in plan_clips(f"video-{n}", "augmented", geometry, sampling)]


def test_boxes_have_the_areas_and_aspects_of_the_method():
    clips = plans(VideoGeometry(1080, 1920, 20.0, 30.0))
    heights, widths = np.array([(c.box_px[2] - c.box_px[0], c.box_px[3] - c.box_px[1]) for c in clips]).T
    areas, aspects = heights * widths / (1080 * 1920), widths / heights
    assert areas.min() > 0.199
    assert areas.max() < 0.767
    assert 0.745 < aspects.min() < 0.76
    assert 1.32 < aspects.max() < 1.34
    # Uniform in area, except for large boxes that do not fit; uniform in the logarithm of the aspect.
    small = areas[areas < 0.4]
    assert np.mean(small < 0.3) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(small)))
    assert np.mean(np.log(aspects[areas < 0.4])) == pytest.approx(0, abs=4 * 0.17 / math.sqrt(len(small)))
    tops, lefts = np.array([c.box_px[:2] for c in clips]).T
    assert (tops.min(), lefts.min()) == (0, 0)
    assert (tops + heights).max() in (1079, 1080)
    assert (lefts + widths).max() in (1919, 1920)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (37, 51), (8, 8), (3, 2), (1, 1), (1, 900)])
def test_boxes_lie_in_the_frame(height, width):
    for clip in plans(VideoGeometry(height, width, 5.0, 30.0), 30):
        y0, x0, y1, x1 = clip.box_px
        assert 0 <= y0 < y1 <= height
        assert 0 <= x0 < x1 <= width


@pytest.mark.parametrize(("height", "width", "box"), [(100, 1000, (0, 433, 100, 566)), (1000, 100, (433, 0, 566, 100))])
def test_where_no_box_fits_it_is_the_central_one_of_the_nearest_aspect(height, width, box):
    assert {clip.box_px for clip in plans(VideoGeometry(height, width, 5.0, 30.0), 20)} == {box}


def test_looks_are_as_frequent_as_the_method_says():
    clips = plans(num_videos=400)
    looks = [clip.appearance for clip in clips]
    assert all(look is not None for look in looks)
    for probability, drawn in [
        (0.8, [bool(look.jitter) for look in looks]),
        (0.2, [look.grey for look in looks]),
        (0.5, [look.blur_px > 0 for look in looks]),
        (0.5, [clip.flipped for clip in clips]),
    ]:
        assert np.mean(drawn) == pytest.approx(
            probability, abs=4 * math.sqrt(probability * (1 - probability) / len(looks))
        )
    amounts: dict[str, list[float]] = {}
    for name, amount in itertools.chain.from_iterable(look.jitter for look in looks):
        amounts.setdefault(name, []).append(amount)
    ranges = {name: (0.4, 1.6) for name in ("brightness", "contrast", "saturation")} | {"hue": (-0.15, 0.15)}
    # In pixels of a short side of 256.
    blurs = [look.blur_px * 256 / GEOMETRY.height_px for look in looks if look.blur_px > 0]
    for values, (low, high) in [*((amounts[name], limits) for name, limits in ranges.items()), (blurs, (0.1, 2.0))]:
        span = high - low
        assert low <= min(values) < low + 0.02 * span
        assert high - 0.02 * span < max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=4 * span / math.sqrt(12 * len(values)))
    orders = [tuple(name for name, _ in look.jitter) for look in looks if look.jitter]
    counts = [orders.count(order) for order in itertools.permutations(ranges)]
    expected = len(orders) / 24
    assert sum((count - expected) ** 2 / expected for count in counts) < 58, "not every order is equally likely"


def test_the_draws_of_one_plan_are_pinned():
    clip = plan_clips("id", "augmented", GEOMETRY, Sampling())[0]
    assert clip.times_s[0] == pytest.approx(15.708148607528841)
    assert (clip.box_px, clip.flipped) == ((22, 102, 237, 286), True)
    assert clip.appearance is not None
    assert [name for name, _ in clip.appearance.jitter] == ["saturation", "brightness", "contrast", "hue"]
    assert [amount for _, amount in clip.appearance.jitter] == pytest.approx(
        [0.861172160863178, 0.6535415662485455, 0.9231621053919855, -0.14028318570181625]
    )
    assert (clip.appearance.grey, clip.appearance.blur_px) == (False, pytest.approx(0.8247753027718463 * 240 / 256))


@pytest.fixture
def frame() -> np.ndarray:
    """A colourful picture, darker at the left, so that the mean of a crop differs from the mean of the whole."""
    y, x = np.mgrid[0:120, 0:160].astype(float)
    waves = np.stack([np.sin(x / 17 + y / 29), np.sin(y / 13), np.sin((x - y) / 23)], -1)
    return (20 + 1.0 * x[..., None] + 40 * (1 + waves)).clip(0, 255).astype(np.uint8)


def changed(image: np.ndarray, name: str, amount: float) -> np.ndarray:
    """The change by torchvision, on a PIL image as the authors used it."""
    return np.asarray(getattr(functional, f"adjust_{name}")(Image.fromarray(image), amount))


def applied(crop: np.ndarray, frame: np.ndarray, appearance: Appearance, scale=(1.0, 1.0)) -> np.ndarray:
    """The appearance of a clip of one frame."""
    [changed_crop] = apply_augmentation(crop[None], [frame], appearance, scale)
    return changed_crop


CHANGES = [("brightness", 0.4), ("brightness", 1.6), ("contrast", 0.4), ("contrast", 1.6), ("saturation", 0.4)]
CHANGES += [("saturation", 1.6), ("hue", -0.15), ("hue", 0.03), ("hue", 0.15)]


@pytest.mark.parametrize(("name", "amount"), CHANGES)
def test_each_change_is_torchvisions_on_the_whole_frame(frame, name, amount):
    cut = frame[10:74, 6:70]
    ours = applied(cut, frame, replace(PLAIN, jitter=((name, amount),)))
    assert np.abs(ours.astype(int) - changed(frame, name, amount)[10:74, 6:70]).max() <= 2
    assert np.abs(ours.astype(int) - cut).mean() > 2, "nothing changed"
    tensor = functional.to_image(Image.fromarray(frame))
    theirs = getattr(functional, f"adjust_{name}")(tensor, amount).permute(1, 2, 0).numpy()[10:74, 6:70]
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_contrast_turns_about_the_mean_of_the_frame_as_it_is_by_then(frame):
    cut = frame[:40, :40]
    for order in itertools.permutations([("brightness", 1.5), ("contrast", 0.4), ("saturation", 1.4), ("hue", 0.1)]):
        whole = frame
        for name, amount in order:
            whole = changed(whole, name, amount)
        ours = applied(cut, frame, replace(PLAIN, jitter=order))
        assert np.abs(ours.astype(int) - whole[:40, :40]).max() <= 3
    first, second = (
        applied(cut, frame, replace(PLAIN, jitter=jitter))
        for jitter in ((("brightness", 1.6), ("contrast", 0.4)), (("contrast", 0.4), ("brightness", 1.6)))
    )
    assert np.abs(first.astype(int) - second).mean() > 5, "the order makes no difference"


def test_grey_has_equal_channels_and_comes_after_the_colours(frame):
    ours = applied(frame, frame, replace(PLAIN, grey=True, jitter=(("saturation", 1.6),)))
    assert np.ptp(ours, axis=2).max() == 0
    expected = functional.rgb_to_grayscale(torch.from_numpy(changed(frame, "saturation", 1.6).copy()).permute(2, 0, 1))
    assert np.abs(ours[..., 0].astype(int) - expected[0].numpy()).max() <= 1


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (0.7, 1.9)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_has_its_width_in_pixels_of_the_frame(sigma, scale):
    """The spread of an edge, measured on a crop that was resized by `scale`."""
    down, across = scale
    cut = np.zeros((64, 64, 3), np.uint8)
    cut[32:, :, 0], cut[:, 32:, 1] = 250, 250
    blurred = applied(cut, cut, replace(PLAIN, blur_px=sigma), scale).astype(float)
    for slope, wanted in ((np.diff(blurred[:, 8, 0]), sigma * down), (np.diff(blurred[8, :, 1]), sigma * across)):
        weights, index = slope / slope.sum(), np.arange(len(slope))
        centre = (weights * index).sum()
        assert centre == pytest.approx(31, abs=0.1)
        spread = math.sqrt((weights * (index - centre) ** 2).sum())
        assert spread == pytest.approx(wanted, rel=0.08, abs=0.06)


def test_all_frames_of_a_clip_look_alike_and_are_those_of_the_plan(tmp_path):
    """In a video of one still picture, every frame is the plain crop with the planned appearance."""
    y, x = np.mgrid[0:120, 0:160]
    still = np.stack([60 + x / 2, 200 - y, 40 + (x + y) / 2], -1).astype(np.uint8)
    path = tmp_path / "still.mp4"
    write_video(path, np.repeat(still[None], 45, 0))
    sampling = Sampling(clips=24, frames=4)
    looks = decode_clips(str(path), "id", "augmented", sampling, [64])
    plain = decode_clips(str(path), "id", "augmented", replace(sampling, **NO_LOOKS), [64])
    for clip, ours, cut in zip(
        plan_clips("id", "augmented", looks.geometry, sampling), looks.pixels[0], plain.pixels[0], strict=True
    ):
        assert np.abs(ours.astype(int) - ours[0]).mean((1, 2, 3)).max() < 2, "frames of one clip look different"
        assert clip.appearance is not None
        y0, x0, y1, x1 = clip.box_px
        expected = applied(cut[0], still, clip.appearance, (64 / (y1 - y0), 64 / (x1 - x0)))
        expected = expected[:, ::-1] if clip.flipped else expected
        assert np.abs(ours[0].astype(int) - expected).mean() < 3
    np.testing.assert_array_equal(looks.positions[:, 1:], plain.positions[:, 1:])


def test_contrast_turns_about_one_mean_of_all_frames_of_a_clip(frame):
    """Not about that of each frame, which would take the changes of brightness out of a video."""
    frames = [frame // 3, frame, np.minimum(frame.astype(int) + 60, 255).astype(np.uint8)]
    cut = np.stack([whole[:40, :40] for whole in frames])
    jitter = (("brightness", 0.8), ("contrast", 0.4))
    ours = apply_augmentation(cut, frames, replace(PLAIN, jitter=jitter), (1.0, 1.0)).astype(int)
    darker = [changed(whole, "brightness", 0.8) for whole in frames]
    level = np.mean([np.asarray(Image.fromarray(whole).convert("L")).mean() for whole in darker])
    for crop, whole in zip(ours, darker, strict=True):
        expected = 0.4 * whole[:40, :40].astype(float) + 0.6 * level
        assert np.abs(crop - expected).max() <= 2
    look = replace(PLAIN, jitter=jitter)
    alone = np.stack([applied(crop, whole, look) for crop, whole in zip(cut, frames, strict=True)])
    assert np.abs(ours - alone).mean() > 5, "the levels of single frames would give the same"


def test_contrast_turns_about_the_mean_of_a_decoded_clip(tmp_path):
    """A video that turns from black to white: at contrast 0, every frame of a clip is the mean of its frames."""
    shades = np.linspace(20, 235, 64).astype(np.uint8)
    path = tmp_path / "fade.mp4"
    write_video(path, np.repeat(shades, 120 * 160 * 3).reshape(64, 120, 160, 3))
    sampling = Sampling(**{**NO_LOOKS, "jitter_probability": 1.0}, jitter_hue=0.0, clips=4, frames=5)
    plain = decode_clips(str(path), "id", "augmented", Sampling(**NO_LOOKS, clips=4, frames=5), [32]).pixels[0]
    ours = decode_clips(str(path), "id", "augmented", sampling, [32, 48])
    clips = plan_clips("id", "augmented", ours.geometry, sampling)
    for pixels in ours.pixels:
        for clip, of_clip, cut in zip(clips, pixels, plain, strict=True):
            assert clip.appearance is not None
            amounts = dict(clip.appearance.jitter)
            shown = cut.mean((1, 2, 3))
            # Brightness and contrast in either order; saturation and hue leave a grey picture as it is.
            names = [name for name, _ in clip.appearance.jitter if name in ("brightness", "contrast")]
            for name in names:
                about = shown.mean() if name == "contrast" else 0
                shown = (about + amounts[name] * (shown - about)).clip(0, 255)
            np.testing.assert_allclose(of_clip.mean((1, 2, 3)), shown, atol=3)


@pytest.mark.parametrize("short_px", [128, 256, 1080])
def test_blur_is_as_wide_on_the_clip_whatever_the_size_of_the_file(short_px):
    """The authors blur frames of which the short side is 256 px: the same part of the picture is blurred."""
    small, large = (plans(VideoGeometry(size, 2 * size, 20.0, 30.0), 5) for size in (256, short_px))
    for one, other in zip(small, large, strict=True):
        assert one.appearance is not None
        assert other.appearance is not None
        assert other.appearance.blur_px == pytest.approx(one.appearance.blur_px * short_px / 256)
    assert max(clip.appearance.blur_px for clip in small if clip.appearance) <= 2.0
