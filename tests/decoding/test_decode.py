"""The right frames and the right boxes, and a reason for every video that cannot be decoded."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.command import SHARED

from scale_ray.clips import plan_clips
from scale_ray.config import Sampling
from scale_ray.corpus.sample_videos import write_video
from scale_ray.decoding.decode import decode_clips
from scale_ray.errors import VideoError
from scale_ray.inspection.headers import header_of

SAMPLING = Sampling(clips=4, frames=4, stride=2, fps=30.0)


def numbered_frames(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames whose brightness encodes their number: 5 grey levels apart, far more than the loss of the codec."""
    assert 10 + 5 * count < 256
    levels = (10 + 5 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return np.broadcast_to(levels, (count, height, width, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 10) / 5)


@pytest.mark.parametrize(("fps", "suffix"), [(10, "mp4"), (25, "mp4"), (30, "mkv"), (30, "avi")])
def test_the_frame_shown_at_the_planned_time_is_decoded(tmp_path, fps, suffix):
    path = tmp_path / f"numbered.{suffix}"
    write_video(path, numbered_frames(45), fps=fps, codec="ffv1" if suffix == "avi" else "libx264")
    clips = decode_clips(str(path), "id", "train", SAMPLING, [32])
    assert clips.pixels[0].shape == (4, 4, 32, 32, 3)
    assert clips.pixels[0].dtype == np.uint8
    for plan, pixels in zip(plan_clips("id", "train", clips.geometry, SAMPLING), clips.pixels[0], strict=True):
        for time_s, frame in zip(plan.times_s, pixels, strict=True):
            assert number_of(frame) == min(int(time_s * fps + 1e-6), 44)


def test_variable_frame_rate_is_read_by_time_stamp(tmp_path):
    path = tmp_path / "variable.mp4"
    gaps_ms = [20, 20, 200, 40, 300, 20, 20, 20, 400, 100] * 3
    stamps_ms = np.concatenate([[0], np.cumsum(gaps_ms)])[:30]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for stamp, image in zip(stamps_ms, numbered_frames(30), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = int(stamp)
            frame.time_base = stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clips = decode_clips(str(path), "id", "train", SAMPLING, [32])
    for plan, pixels in zip(plan_clips("id", "train", clips.geometry, SAMPLING), clips.pixels[0], strict=True):
        for time_s, frame in zip(plan.times_s, pixels, strict=True):
            assert number_of(frame) == int(np.searchsorted(stamps_ms / 1000, time_s + 1e-6, side="right")) - 1


def test_a_short_video_repeats_its_last_frame(tmp_path):
    path = tmp_path / "short.mp4"
    write_video(path, numbered_frames(3), fps=30)
    clips = decode_clips(str(path), "id", "eval", Sampling(), [32])
    assert [number_of(frame) for frame in clips.pixels[0][0]] == [0] + [2] * 15
    assert clips.positions[0, 6] == pytest.approx(2 / 30, abs=1e-3)


def test_boxes_flips_and_positions_are_those_of_the_plan(tmp_path):
    path = tmp_path / "ramp.mp4"
    ramp = np.broadcast_to(np.arange(0, 240, dtype=np.uint8)[None, None, :, None], (20, 120, 240, 3))
    write_video(path, np.ascontiguousarray(ramp))
    sampling = Sampling(clips=12)
    clips = decode_clips(str(path), "id", "train", sampling, [112])
    seen = set()
    plans = plan_clips("id", "train", clips.geometry, sampling)
    for plan, pixels, position in zip(plans, clips.pixels[0], clips.positions, strict=True):
        columns = pixels[0, :, :, 0].mean(0)
        left, right = (plan.box_px[3], plan.box_px[1]) if plan.flipped else (plan.box_px[1], plan.box_px[3])
        assert columns[1] == pytest.approx(left, abs=6)
        assert columns[-2] == pytest.approx(right, abs=6)
        assert position[0] == (1 if plan.flipped else -1)
        assert position[1:5] == pytest.approx(plan.box_px, abs=1e-3)
        seen.add(plan.flipped)
    assert seen == {True, False}


def test_a_file_object_gives_what_the_path_gives(tmp_path):
    path = tmp_path / "numbered.mkv"
    write_video(path, numbered_frames(30), fps=15)
    from_path = decode_clips(str(path), "id", "train", SAMPLING, [32])
    from_file = decode_clips(lambda: path.open("rb"), "id", "train", SAMPLING, [32])
    np.testing.assert_array_equal(from_path.pixels[0], from_file.pixels[0])
    np.testing.assert_array_equal(from_path.positions, from_file.positions)


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.avi"
    whole = folder / "whole.avi"
    write_video(whole, np.random.default_rng(0).integers(0, 255, (60, 64, 96, 3), np.uint8), fps=15, codec="mpeg4")
    content = whole.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"no video\n" * 100, "cut": content[: len(content) // 2], "head": content[:200]}[kind]
    )
    return path


@pytest.mark.parametrize(
    ("kind", "stage", "reason"),
    [
        ("empty", "open", "not a readable video: the file is empty"),
        ("text", "open", "not a readable video: damaged, cut short, or not a video"),
        ("head", "open", "not a readable video|no video stream"),
        ("cut", "decode", "cut short|damaged"),
    ],
)
def test_what_is_no_video_has_a_reason(tmp_path, kind, stage, reason):
    with pytest.raises(VideoError, match=reason) as caught:
        decode_clips(str(broken(tmp_path, kind)), "id", "eval", Sampling(), [32])
    assert caught.value.stage == stage


def test_a_text_that_ffmpeg_would_show_as_terminal_art_is_no_video(tmp_path):
    path = tmp_path / "notes.nfo"
    path.write_text("Some notes.\n" * 50)
    with pytest.raises(VideoError, match=r"not a video: FFmpeg reads it as 'tty'|not a readable video"):
        decode_clips(str(path), "id", "train", Sampling(), [32])


def test_a_codec_without_a_decoder_has_a_reason(tmp_path):
    path = tmp_path / "unknown.mp4"
    write_video(path, numbered_frames(5), fps=10, codec="libx264")
    content = path.read_bytes()
    assert content.count(b"avc1") >= 1
    path.write_bytes(content.replace(b"avc1", b"zzz1"))
    for read in (lambda: decode_clips(str(path), "id", "eval", Sampling(), [32]), lambda: header_of("id", str(path))):
        with pytest.raises(VideoError, match="FFmpeg has no decoder for its video stream") as caught:
            read()
        assert caught.value.stage == "open"


def test_a_missing_file_has_a_reason():
    with pytest.raises(VideoError, match="No such file"):
        decode_clips("/nowhere/video.mp4", "id", "train", Sampling(), [32])


def test_an_encrypted_video_is_called_encrypted(tmp_path):
    path = tmp_path / "encrypted.mp4"
    key = "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=15)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for image in numbered_frames(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    for read in (
        lambda: decode_clips(str(path), "id", "eval", Sampling(), [32]),
        lambda: header_of("id", str(path)),
    ):
        with pytest.raises(VideoError, match="encrypted: its frames cannot be decoded without the key") as caught:
            read()
        assert caught.value.stage == "open"


@pytest.mark.parametrize(
    ("size", "colour_space", "reason"),
    [
        ((64, 96), 8, r"FFmpeg cannot convert 96x64 px of yuv420p \(colour space YCgCo\) to 336x224 px of RGB: "),
        ((2, 16380), 2, r"FFmpeg cannot convert 16380x2 px of yuv420p .* to 1834560x224 px of RGB: "),
    ],
    ids=["YCgCo", "16380x2"],
)
def test_what_ffmpeg_cannot_convert_is_not_called_damaged(tmp_path, size, colour_space, reason):
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = colour_space
        for number in range(10):
            frame = av.VideoFrame(size[1], size[0], "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            frame.pts, frame.colorspace = number, colour_space
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=reason) as caught:
        decode_clips(str(path), "id", "eval", Sampling(), [224])
    assert caught.value.stage == "decode"


PICTURES = ("made__photo.avif", "made__photo.heic", "made__song_with_cover.m4a")


def odd_files() -> list[Any]:
    return [pytest.param(path, id=path.name) for path in sorted((SHARED / "odd").glob("*"))]


@pytest.mark.parametrize("path", odd_files())
def test_odd_files_decode_or_have_a_reason(path):
    if "corrupted" in path.name:
        with pytest.raises(VideoError, match="damaged"):
            decode_clips(str(path), "id", "train", Sampling(), [64])
        return
    if path.name in PICTURES:
        with pytest.raises(VideoError, match="only a picture"):
            decode_clips(str(path), "id", "train", Sampling(), [64])
        return
    clips = decode_clips(str(path), "id", "train", Sampling(), [64])
    assert np.isfinite(clips.positions).all()
    assert clips.pixels[0].std() > 0 or path.name.startswith("moviepy__-video-with-dash")


# Seconds, and frames per second on average: what a player shows, and not always what the header says.
MADE = {
    "made__begins_between_key_frames.ts": (7.0, 30.0),
    "made__last_frame_stands_25_s.mp4": (29.967, 5.006),
    "made__pause_at_the_end.gif": (5.9, 3.448),
    "made__raw_stream_12_s.h264": (12.0, 30.0),
}


@pytest.mark.parametrize("name", MADE)
def test_odd_files_give_clips_for_every_id_in_every_mode(real_media, name):
    duration_s, fps = MADE[name]
    small = Sampling(clips=8, frames=4, stride=2, eval_times=8, eval_crops=1)
    for mode in ("train", "augmented", "eval"):
        for number in range(1 if mode == "eval" else 20):
            clips = decode_clips(str(real_media / "odd" / name), f"id {number}", mode, small, [16])
            assert clips.geometry.duration_s == pytest.approx(duration_s, abs=0.04)
            assert clips.geometry.fps == pytest.approx(fps, abs=0.01)
        if mode == "eval":
            assert clips.positions[0, 5] == 0
            assert clips.positions[-1, 6] > min(duration_s / 2, 1.8), "the end is not shown"


def test_scrambled_stamps_fall_back_on_the_decoders_order(real_media):
    """The presentation stamps of these files are not monotonic; neighbouring frames must still be similar."""
    path = real_media / "videos/ut_interaction/kick/13_3_2.avi"
    clips = decode_clips(str(path), "id", "eval", Sampling(stride=1), [64])
    video = clips.pixels[0][1].astype(float)
    near = np.abs(np.diff(video, axis=0)).mean()
    far = np.abs(video[8:] - video[:-8]).mean()
    assert near < 0.6 * far
