"""A crop equals the whole frame converted, turned, cropped and resized, for every decoded pixel format."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from scale_ray.clips import plan_clips
from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips

FPS = 15
NUM_FRAMES = 40
PLAIN = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0}
SAMPLING = Sampling(clips=6, frames=3, stride=4, eval_times=1, **PLAIN)


def smooth(number: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((x + 3 * number) / 23), np.sin((y - 2 * number) / 19), np.sin((x + y) / 31 + number / 5)]
    return (127 + 80 * np.stack(waves, -1)).astype(np.uint8)


def encode(path: Path, *, size=(120, 180), pix_fmt="yuv420p", codec="libx264", degrees=0, colours=None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"threads": "1", "crf": "12", "deadline": "realtime"})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if degrees:
            stream.set_display_rotation(degrees)
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(smooth(number, *size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def whole_frames(path: Path, degrees: int) -> list[np.ndarray]:
    """Every frame as it is shown: RGB, turned counter-clockwise by the display matrix."""
    with av.open(str(path)) as container:
        return [np.rot90(frame.to_ndarray(format="rgb24"), degrees // 90) for frame in container.decode(video=0)]


def assert_cuts_are_right(path: Path, *, degrees: int = 0, input_size_px: int = 64, tolerance: float = 3.0) -> None:
    frames = whole_frames(path, degrees)
    seen_flips = set()
    for mode in ("train", "augmented", "eval"):
        clips = decode_clips(str(path), "id", mode, SAMPLING, [input_size_px])
        assert (clips.geometry.height_px, clips.geometry.width_px) == frames[0].shape[:2]
        plans = plan_clips("id", mode, clips.geometry, SAMPLING)
        for plan, position, pixels in zip(plans, clips.positions, clips.pixels[0], strict=True):
            y0, x0, y1, x1 = plan.box_px
            assert tuple(position[1:5]) == plan.box_px
            assert 0 <= y0 < y1 <= frames[0].shape[0]
            assert 0 <= x0 < x1 <= frames[0].shape[1]
            seen_flips.add(plan.flipped)
            for time_s, cut in zip(plan.times_s, pixels, strict=True):
                frame = frames[min(int(time_s * FPS + 1e-3), NUM_FRAMES - 1)]
                box = Image.fromarray(np.ascontiguousarray(frame[y0:y1, x0:x1]))
                expected = np.asarray(box.resize((input_size_px, input_size_px), Image.Resampling.BILINEAR))
                expected = expected[:, ::-1] if plan.flipped else expected
                difference = np.abs(expected.astype(int) - cut)
                assert difference.mean() < tolerance, (mode, plan.box_px, plan.flipped, difference.mean())
    assert seen_flips == {True, False}


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"])
def test_cuts_of_every_format_and_rotation(tmp_path, pix_fmt, degrees):
    assert_cuts_are_right(encode(tmp_path / "video.mp4", pix_fmt=pix_fmt, degrees=degrees), degrees=degrees)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv444p"), ("libvpx-vp9", "yuv420p")])
def test_cuts_of_odd_sizes(tmp_path, codec, pix_fmt, degrees):
    path = encode(tmp_path / "video.mp4", size=(121, 183), codec=codec, pix_fmt=pix_fmt, degrees=degrees)
    assert_cuts_are_right(path, degrees=degrees)


@pytest.mark.parametrize("size", [(96, 400), (300, 90), (40, 34)])
@pytest.mark.parametrize("input_size_px", [32, 112])
def test_cuts_of_wide_tall_and_small_frames(tmp_path, size, input_size_px):
    # Boxes that are cut together may be off by half a pixel of the crop: here 1.5 pixels of the frame.
    assert_cuts_are_right(encode(tmp_path / "video.mp4", size=size), input_size_px=input_size_px, tolerance=4.5)


@pytest.mark.parametrize(
    ("pix_fmt", "colours"),
    [
        ("yuvj420p", {}),
        ("yuv420p", {"color_range": 2}),
        ("yuv420p", {"colorspace": 1, "color_primaries": 1, "color_trc": 1}),
        ("yuv420p10le", {"colorspace": 9, "color_primaries": 9, "color_trc": 14}),
    ],
    ids=["yuvj420p", "full-range", "bt709", "bt2020"],
)
def test_cuts_have_the_colours_of_the_whole_frame(tmp_path, pix_fmt, colours):
    assert_cuts_are_right(encode(tmp_path / "video.mp4", pix_fmt=pix_fmt, colours=colours))


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        (".avi", "mjpeg", "yuvj422p"),
        (".mkv", "ffv1", "yuv411p"),
        (".mkv", "ffv1", "bgr0"),
        (".mkv", "ffv1", "yuv410p"),
        (".mkv", "ffv1", "gray16le"),
    ],
)
def test_cuts_of_rare_formats(tmp_path, suffix, codec, pix_fmt):
    path = encode(tmp_path / f"video{suffix}", codec=codec, pix_fmt=pix_fmt)
    # Their chroma is coarse, so the order of cropping and resizing makes a difference.
    assert_cuts_are_right(path, tolerance=6.0)


def test_a_stamp_rounded_to_a_millisecond_means_the_same_frame(tmp_path):
    sampling = Sampling(frames=3, stride=3, eval_times=1, **PLAIN)  # at 0, 2 and 4 frames
    clips = [
        decode_clips(str(encode(tmp_path / f"video{suffix}")), "id", "eval", sampling, [64]).pixels[0].astype(float)
        for suffix in (".mp4", ".mkv")
    ]
    # The two encodings are not bit-identical, but a different frame would differ far more.
    frames_apart = np.abs(np.diff(clips[0], axis=1)).mean()
    assert np.abs(clips[0] - clips[1]).mean() < 0.1 * frames_apart
