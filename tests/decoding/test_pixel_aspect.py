"""Pixels that are not square: sizes and boxes are those of the frame as players show it."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image
from support.command import SHARED

from scale_ray.clips import plan_clips
from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips
from scale_ray.inspection.headers import header_of

FPS = 15
NUM_FRAMES = 20
HEIGHT, WIDTH = 120, 180
BILINEAR = Image.Resampling.BILINEAR
SAMPLING = Sampling(
    clips=6, frames=3, stride=4, eval_times=1, jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0
)


def waves(number: int) -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    layers = [np.sin((x + 3 * number) / 23), np.sin((y - 2 * number) / 19), np.sin((x + y) / 31 + number / 5)]
    return (127 + 80 * np.stack(layers, -1)).astype(np.uint8)


def encode(path: Path, aspect: Fraction, degrees: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"threads": "1", "crf": "12"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        if degrees:
            stream.set_display_rotation(degrees)
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(waves(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_coded_aspect(path: Path, copy_path: Path, aspect: str) -> Path:
    """A copy whose coded stream states another pixel aspect than its container."""
    with av.open(str(path)) as source, av.open(str(copy_path), "w") as copy:
        stream = source.streams.video[0]
        target = copy.add_stream_from_template(stream)
        state_aspect = BitStreamFilterContext(f"h264_metadata=sample_aspect_ratio={aspect}", stream, target)
        for packet in [*source.demux(stream), None]:
            for changed in state_aspect.filter(packet):
                changed.stream = target
                copy.mux(changed)
    return copy_path


def displayed_px(path: Path) -> tuple[int, int]:
    geometry = decode_clips(str(path), "id", "eval", SAMPLING, [32]).geometry
    return geometry.height_px, geometry.width_px


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("aspect", [Fraction(32, 27), Fraction(1, 2), Fraction(10, 11), Fraction(2)])
def test_cuts_are_those_of_the_frame_with_square_pixels(tmp_path, aspect, degrees):
    path = encode(tmp_path / "video.mp4", aspect, degrees)
    with av.open(str(path)) as container:
        images = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    square = [image.resize((round(WIDTH * aspect), HEIGHT), BILINEAR) for image in images]
    frames = [np.rot90(np.asarray(image), degrees // 90) for image in square]
    for mode in ("train", "augmented", "eval"):
        clips = decode_clips(str(path), "id", mode, SAMPLING, [64])
        assert (clips.geometry.height_px, clips.geometry.width_px) == frames[0].shape[:2]
        plans = plan_clips("id", mode, clips.geometry, SAMPLING)
        for plan, position, pixels in zip(plans, clips.positions, clips.pixels[0], strict=True):
            y0, x0, y1, x1 = plan.box_px
            assert tuple(position[1:5]) == plan.box_px
            for time_s, cut in zip(plan.times_s, pixels, strict=True):
                frame = frames[min(int((time_s + 6e-4) * FPS), NUM_FRAMES - 1)][y0:y1, x0:x1]
                expected = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((64, 64), BILINEAR))
                expected = expected[:, ::-1] if plan.flipped else expected
                # The next frame would differ by 6 and more; two resizings, in other orders, of coded pixels by about 3.
                assert np.abs(expected.astype(int) - cut).mean() < 4, (mode, plan)


def test_the_header_has_the_size_with_square_pixels(tmp_path):
    header = header_of("id", str(encode(tmp_path / "video.mp4", Fraction(4, 3), degrees=90)))
    assert (header.height_px, header.width_px) == (HEIGHT, 240)
    assert displayed_px(tmp_path / "video.mp4") == (240, HEIGHT)


def test_the_aspect_that_the_container_states_comes_first(tmp_path):
    path = with_coded_aspect(encode(tmp_path / "once.mp4", Fraction(2)), tmp_path / "video.mp4", "4/3")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.sample_aspect_ratio == Fraction(4, 3)
    assert displayed_px(path) == (HEIGHT, 2 * WIDTH)
    assert header_of("id", str(path)).width_px == 2 * WIDTH


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_without_one_in_the_container_that_of_the_coded_stream_counts(tmp_path, suffix):
    path = encode(tmp_path / f"video.{suffix}", Fraction(4, 3))
    assert displayed_px(path) == (HEIGHT, 240)
    assert header_of("id", str(path)).width_px == 240


@pytest.mark.parametrize("aspect", [Fraction(0), Fraction(200), Fraction(1, 200)])
def test_an_absurd_aspect_counts_as_square(tmp_path, aspect):
    path = encode(tmp_path / "video.mp4", aspect)
    assert displayed_px(path) == (HEIGHT, WIDTH)
    assert header_of("id", str(path)).width_px == WIDTH


def test_an_anamorphic_file_of_another_program_is_shown_wide():
    path = SHARED / "odd/made__anamorphic.mp4"
    if not path.is_file():
        pytest.skip("no real media")
    assert displayed_px(path) == (480, 1010)
