"""A still picture is no video, whatever its format; an animated one is."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support.videos import encode

from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips
from scale_ray.errors import VideoError
from scale_ray.inspection.headers import header_of

SAMPLING = Sampling(frames=4, eval_times=1, eval_crops=1)


def images(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((64, 96, 3), 50 + 40 * number, np.uint8)) for number in range(count)]


def save(path: Path, count: int) -> Path:
    first, *others = images(count)
    first.save(path, **({"save_all": True, "append_images": others, "duration": 100} if others else {}))
    return path


def with_cover(path: Path, folder: Path, *, video: Path | None) -> Path:
    """A file with sound and a cover, and the video if there is one; the cover is the first stream."""
    cover = save(folder / "cover.png", 1)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("png", rate=1)
        picture.height, picture.width, picture.pix_fmt = 64, 96, "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=48000, layout="mono")
        source = av.open(str(video)) if video else None
        target = container.add_stream_from_template(source.streams.video[0]) if source else None
        [packet] = [*picture.encode(av.VideoFrame.from_image(Image.open(cover))), *picture.encode()]
        packet.pts = packet.dts = 0
        container.mux(packet)
        for number in range(100):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate, silence.pts, silence.time_base = 48000, 1024 * number, Fraction(1, 48000)
            container.mux(sound.encode(silence))
        container.mux(sound.encode())
        if source:
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = target
                    container.mux(packet)
            source.close()
    return path


def assert_only_a_picture(path: Path) -> None:
    for read in (lambda: decode_clips(str(path), "id", "eval", SAMPLING, [32]), lambda: header_of("id", str(path))):
        with pytest.raises(VideoError) as caught:
            read()
        assert (caught.value.stage, caught.value.reason) == ("open", "only a picture")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff", "ico", "avif"])
def test_a_still_picture_is_no_video(tmp_path, suffix):
    assert_only_a_picture(save(tmp_path / f"still.{suffix}", 1))


@pytest.mark.parametrize("suffix", ["gif", "png", "avif", "webp"])
def test_an_animated_picture_is_a_video(tmp_path, suffix):
    path = save(tmp_path / f"animated.{suffix}", 4)
    clips = decode_clips(str(path), "id", "eval", SAMPLING, [32])
    means = clips.pixels[0][0].mean((1, 2, 3))
    assert means[0] == pytest.approx(50, abs=3)
    assert means[-1] == pytest.approx(170, abs=3)
    assert header_of("id", str(path)).fps == 10


def test_the_frames_of_an_animated_webp_stand_as_long_as_it_says(tmp_path):
    path = tmp_path / "animated.webp"
    first, *others = images(4)
    first.save(path, save_all=True, append_images=others, duration=[100, 700, 200, 3000], lossless=True)
    clips = decode_clips(str(path), "id", "eval", Sampling(frames=8, stride=16, eval_times=1, eval_crops=1), [32])
    assert (clips.geometry.height_px, clips.geometry.width_px) == (64, 96)
    assert clips.geometry.duration_s == pytest.approx(4.0)
    # Eight times from 0 to 127/30 s.
    shown = np.searchsorted([0.1, 0.8, 1.0], np.arange(8) * 127 / 30 / 7, "right")
    np.testing.assert_allclose(clips.pixels[0][0].mean((1, 2, 3)), 50 + 40 * shown, atol=2)


def test_a_damaged_animated_webp_has_a_reason(tmp_path):
    path = save(tmp_path / "animated.webp", 4)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VideoError, match=r"an animated WebP that is damaged"):
        decode_clips(str(path), "id", "eval", SAMPLING, [32])


def test_the_cover_of_a_song_is_no_video(tmp_path):
    assert_only_a_picture(with_cover(tmp_path / "song.mp4", tmp_path, video=None))


def test_beside_a_cover_the_video_is_read(tmp_path):
    video = encode(tmp_path / "video.mp4", seconds=1)
    path = with_cover(tmp_path / "film.mp4", tmp_path, video=video)
    clips, expected = (decode_clips(str(file), "id", "eval", SAMPLING, [32]) for file in (path, video))
    np.testing.assert_array_equal(clips.pixels[0], expected.pixels[0])
    assert header_of("id", str(path)).codec == "h264"


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_video_of_one_frame_stays_a_video(tmp_path, suffix):
    path = tmp_path / f"video.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        frame = av.VideoFrame.from_image(images(1)[0])
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert decode_clips(str(path), "id", "eval", SAMPLING, [32]).pixels[0].mean() == pytest.approx(50, abs=3)
    assert header_of("id", str(path)).width_px == 96
