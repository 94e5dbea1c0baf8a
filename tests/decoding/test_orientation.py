"""Videos are shown as their display matrix says: turned, mirrored, or refused."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image
from support.command import SHARED

from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips
from scale_ray.errors import VideoError

ONE = 1 << 16
HEIGHT, WIDTH = 64, 96
SAMPLING = Sampling(frames=3, stride=4, eval_times=1, eval_crops=3)

# The entries a, b, c, d of the matrix, and the same in numpy.
ORIENTATIONS = {
    "as-decoded": ((1, 0, 0, 1), lambda image: image),
    "mirrored-left-right": ((-1, 0, 0, 1), np.fliplr),
    "half-turn": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "mirrored-top-bottom": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "turned-clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "anti-transposed": ((0, -1, -1, 0), lambda image: np.rot90(image.swapaxes(0, 1), 2)),
    "turned-counter-clockwise": ((0, -1, 1, 0), np.rot90),
}


def quadrants(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Four areas of different brightness, none of them symmetric to another."""
    image = np.empty((height, width, 3), np.uint8)
    top, left = height // 4, width // 3
    image[:top, :left], image[:top, left:], image[top:, :left], image[top:, left:] = 40, 100, 160, 220
    return image


def encode(path: Path, matrix: Sequence[float] | None, options: dict[str, str] | None = None) -> Path:
    """A second of still quadrants, in a container that has the matrix (a, b, c, d)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"threads": "1", "crf": "10", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        if matrix is not None:
            a, b, c, d = (round(entry * ONE) for entry in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(quadrants(), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def assert_shown(path: Path, shown: np.ndarray) -> None:
    """Check the three square crops along the long side, in every frame, against the whole shown frame."""
    clips = decode_clips(str(path), "id", "eval", SAMPLING, [64])
    assert (clips.geometry.height_px, clips.geometry.width_px) == shown.shape[:2]
    for pixels, position in zip(clips.pixels[0], clips.positions, strict=True):
        y0, x0, y1, x1 = position[1:5].astype(int)
        for image in pixels:
            assert np.abs(image.astype(int) - shown[y0:y1, x0:x1]).mean() < 4


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_each_of_the_eight_orientations_is_shown(tmp_path, name):
    matrix, transform = ORIENTATIONS[name]
    assert_shown(encode(tmp_path / "video.mp4", matrix), transform(quadrants()))


@pytest.mark.parametrize(
    ("matrix", "name"),
    [((0, 0, 0, 0), "as-decoded"), ((2, 0, 0, 2), "as-decoded"), ((0.001, 0.999, -1, 0), "turned-clockwise")],
    ids=["zeros", "enlarged", "rounded"],
)
def test_a_matrix_that_is_nearly_one_of_the_eight_counts_as_that(tmp_path, matrix, name):
    assert_shown(encode(tmp_path / "video.mp4", matrix), ORIENTATIONS[name][1](quadrants()))


@pytest.mark.parametrize("matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.3, 0, 1), (1, 0, 0, 0)])
def test_any_other_matrix_is_refused(tmp_path, matrix):
    path = encode(tmp_path / "video.mov", matrix)
    with pytest.raises(VideoError, match="display matrix: expected quarter turns, mirrored or not, found") as caught:
        decode_clips(str(path), "id", "eval", SAMPLING, [64])
    assert caught.value.stage == "decode"


def test_a_stream_that_states_its_orientation_only_in_key_frames_is_turned_as_a_whole(tmp_path):
    once = encode(tmp_path / "once.ts", None)
    path = tmp_path / "turned.ts"
    with av.open(str(once)) as source, av.open(str(path), "w") as copy:
        stream = source.streams.video[0]
        target = copy.add_stream_from_template(stream)
        state_orientation = BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", stream)
        for packet in [*source.demux(stream), None]:
            for turned in state_orientation.filter(packet):
                turned.stream = target
                copy.mux(turned)
    assert_shown(path, np.rot90(quadrants()))


@pytest.mark.parametrize(("name", "axis"), [("left_right", 1), ("top_bottom", 0)])
def test_mirrored_files_of_other_programs_are_shown(name, axis):
    path = SHARED / f"odd/made__mirrored_{name}.mp4"
    if not path.is_file():
        pytest.skip("no real media")
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    clips = decode_clips(str(path), "id", "eval", Sampling(frames=2, eval_times=1, eval_crops=1), [first.shape[0]])
    y0, x0, y1, x1 = clips.positions[0, 1:5].astype(int)
    expected = np.flip(first, axis)[y0:y1, x0:x1]
    assert np.abs(clips.pixels[0][0, 0].astype(int) - expected).mean() < 2


@pytest.mark.parametrize(
    ("exif", "shown"), [(1, quadrants()), (2, np.fliplr(quadrants())), (6, np.rot90(quadrants(), -1))]
)
def test_the_orientation_of_photos_in_a_row_is_that_of_their_exif(tmp_path, exif, shown):
    """Motion JPEG of cameras; FFmpeg passes on EXIF as side data of a type that PyAV does not know."""
    path = tmp_path / "camera.mov"
    photo, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = exif
    Image.fromarray(quadrants()).save(photo, "jpeg", exif=tags, quality=95)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        for number in range(30):
            packet = av.Packet(photo.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 30)
            packet.duration = 1
            container.mux(packet)
    assert_shown(path, shown)
