"""Which frame is shown when: raw and joined streams, stamps of decoding, frames that stand, files that were cut."""

import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from scale_ray.clips import plan_clips
from scale_ray.config import Sampling
from scale_ray.decoding import open_video, timing_of
from scale_ray.decoding.decode import DecodedClips, decode_clips
from scale_ray.decoding.frames import FrameReader
from scale_ray.errors import VideoError
from scale_ray.inspection.headers import header_of

FPS, FRAMES = 30, 360
SIZE_PX, GRID = 96, 3
SAMPLING = Sampling(frames=4, stride=2, eval_times=12, eval_crops=1, clips=12, flip_probability=0.0)
H264 = {"preset": "veryfast", "bf": "3", "g": "60"}
HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:keyint=60"}


def coded(number: int) -> np.ndarray:
    """A frame that shows its number as nine black and white squares."""
    bits = np.array([(number >> bit) & 1 for bit in range(GRID * GRID)]).reshape(GRID, GRID)
    side = SIZE_PX // GRID
    grey = np.kron(30 + 190 * bits, np.ones((side, side))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def number_of(image: np.ndarray) -> int:
    side = image.shape[0] // GRID
    centres = image[side // 2 :: side, side // 2 :: side].mean(-1)[:GRID, :GRID] > 125
    return int((centres.reshape(-1) * (1 << np.arange(GRID * GRID))).sum())


def write(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] = H264,
    stamps: Sequence[int] = range(FRAMES),
    fps: int = FPS,
    **mux: str,
) -> Path:
    """A video whose frame k shows the number k and has the stamp `stamps[k]`, in units of 1 / fps."""
    with av.open(str(path), "w", options=mux) as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **options})
        stream.height = stream.width = SIZE_PX
        stream.pix_fmt = "yuv420p"
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(coded(number), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path, mode: str = "eval", video_id: str = "id") -> DecodedClips:
    return decode_clips(str(path), video_id, mode, SAMPLING, [SIZE_PX])


def assert_frames(path: Path, duration_s: float, stamps: Sequence[int] = range(FRAMES), first: int = 0) -> DecodedClips:
    """Check the duration, and that each frame of each clip is the one that is shown at the planned time.

    `stamps` are those of the frames that can be shown, of which the first has the number `first`.
    """
    clips = decoded(path)
    assert clips.geometry.duration_s == pytest.approx(duration_s, abs=0.04)
    stamps_s = (np.array(stamps) - stamps[0]) / FPS
    for plan, pixels in zip(plan_clips("id", "eval", clips.geometry, SAMPLING), clips.pixels[0], strict=True):
        shown = [number_of(frame) for frame in pixels]
        expected = [first + int(np.searchsorted(stamps_s, time_s + 1e-3, "right")) - 1 for time_s in plan.times_s]
        assert shown == expected, plan.times_s
    for number in range(20):
        decoded(path, "train", f"id {number}")  # clips for every id
    return clips


RAW = {
    "h264": ("libx264", H264),
    "hevc": ("libx265", HEVC),
    "m2v": ("mpeg2video", {"bf": "2", "g": "15"}),
    "m1v": ("mpeg1video", {"bf": "2", "g": "15"}),
    "m4v": ("mpeg4", {"bf": "2", "g": "60"}),
}


@pytest.mark.parametrize("suffix", RAW)
def test_a_raw_stream_is_shown_at_its_own_rate(tmp_path, suffix):
    path = write(tmp_path / f"raw.{suffix}", *RAW[suffix])
    clips = assert_frames(path, 12.0)
    assert clips.geometry.fps == pytest.approx(FPS)
    header = header_of("id", str(path))
    assert (header.duration_s, header.fps) == (pytest.approx(12.0, abs=0.04), pytest.approx(FPS))


def test_a_raw_stream_that_states_no_rate_is_refused(tmp_path):
    path = tmp_path / "raw.obu"
    # In a process of its own: as root, this encoder gives its process priority over all others, and keeps it.
    code = "import sys; from test_timing import write; write(*sys.argv[1:], {'preset': '12'}, range(30))"
    subprocess.run(
        [sys.executable, "-c", code, path, "libsvtav1"], check=True, capture_output=True, cwd=Path(__file__).parent
    )
    for read in (decoded, lambda path: header_of("id", str(path))):
        with pytest.raises(VideoError, match="states neither time stamps nor a frame rate"):
            read(path)


def test_at_thousands_of_frames_per_second_each_is_found(tmp_path):
    """The tolerance for rounded stamps is less than half a frame."""
    path = write(tmp_path / "fast.mp4", fps=4000)
    with open_video(str(path)) as video:
        reader = FrameReader(video, timing_of(video), by_stamp=True, may_seek=True)
        for number in (0, 1, 7, 100, 101, 250, 359):
            _, frame = reader.frame_at((number + 0.25) / 4000)
            assert number_of(frame.to_ndarray(format="rgb24")) == number


REORDERED = {
    "h264.avi": ("libx264", H264),
    "mpeg4.avi": ("mpeg4", {"bf": "2", "g": "60"}),
    "h264.asf": ("libx264", H264),
    "h264.mpg": ("libx264", H264),
    "mpeg2.vob": ("mpeg2video", {"bf": "2", "g": "15"}),
    "h264.ts": ("libx264", H264),
}


@pytest.mark.parametrize("name", REORDERED)
def test_frames_without_presentation_stamps_are_shown_in_order(tmp_path, name):
    clips = assert_frames(write(tmp_path / name, *REORDERED[name]), 12.067 if name == "h264.asf" else 12.0)
    assert clips.geometry.fps == pytest.approx(FPS)


@pytest.mark.parametrize("name", ["h264.avi", "h264.asf", "mpeg4.avi"])
def test_frames_left_out_before_encoding_shift_no_others(tmp_path, name):
    """A variable frame rate, where the container stores decoding stamps only."""
    stamps = [stamp for stamp in range(FRAMES) if stamp % 19 not in (4, 5, 6, 7, 13)]
    clips = decoded(write(tmp_path / name, *REORDERED[name], stamps))
    times_s = [time_s for plan in plan_clips("id", "eval", clips.geometry, SAMPLING) for time_s in plan.times_s]
    shown = [number_of(frame) for clip in clips.pixels[0] for frame in clip]
    expected = [int(np.searchsorted(np.array(stamps) / FPS, time_s + 1.1e-3, "right")) - 1 for time_s in times_s]
    last = len(stamps) - 4  # of the last frames, reordered ones have no stamps
    assert [min(number, last) for number in shown] == [min(number, last) for number in expected]


JOINED = {
    "ts": ("libx264", H264),
    "mpg": ("mpeg2video", {"bf": "2", "g": "15"}),
    "vob": ("mpeg2video", {"bf": "2", "g": "15"}),
    "h264": ("libx264", H264),
    "mkv": ("libx264", H264),
    "avi": ("mpeg4", {"bf": "2", "g": "60"}),
    "webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
}


@pytest.mark.parametrize("suffix", JOINED)
def test_both_parts_of_joined_streams_are_shown(tmp_path, suffix):
    part = write(tmp_path / f"part.{suffix}", *JOINED[suffix]).read_bytes()
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(part + part)
    clips = decoded(path)
    assert clips.geometry.duration_s == pytest.approx(24.0, abs=0.04)
    for plan, pixels in zip(plan_clips("id", "eval", clips.geometry, SAMPLING), clips.pixels[0], strict=True):
        assert [number_of(frame) for frame in pixels] == [int(FPS * t + 0.03) % FRAMES for t in plan.times_s]
    assert clips.positions[:, 6].max() > 12
    for number in range(20):
        decoded(path, "train", f"id {number}")


def test_a_remote_file_is_fetched_once(tmp_path):
    opened = []
    path = write(tmp_path / "video.ts")

    def source():
        opened.append(path)
        return path.open("rb")

    assert decode_clips(source, "id", "eval", SAMPLING, [32]).geometry.duration_s == pytest.approx(12.0, abs=0.04)
    assert len(opened) == 1


# A second of motion, then a picture that stands until 6 s and another one that stands until 6.67 s.
STANDING = [*range(30), 180, 200]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "flv"])
def test_a_recording_of_a_screen_that_does_not_change_is_no_short_one(tmp_path, suffix):
    """With reordered frames, the header of an MP4 states 1.07 s, by the times at which packets are decoded."""
    assert_frames(write(tmp_path / f"screen.{suffix}", stamps=STANDING), 6.7, STANDING)


@pytest.mark.parametrize("options", [{**H264, "bf": "0"}, H264], ids=["in order", "reordered"])
def test_the_last_frame_may_stand(tmp_path, options):
    """The length that a container states beyond its last packet, here by an edit of its header."""
    path = write(tmp_path / "once.mkv", options=options, stamps=range(150))
    content = path.read_bytes()
    duration_id = b"\x44\x89\x88"  # the segment's length: a float of 8 bytes, in ms
    assert content.count(duration_id) == 1
    at = content.index(duration_id) + 3
    assert np.frombuffer(content[at : at + 8], ">f8")[0] == pytest.approx(5000, abs=1)
    stands = tmp_path / "stands.mkv"
    stands.write_bytes(content[:at] + np.array(30000, ">f8").tobytes() + content[at + 8 :])
    assert_frames(stands, 5.0, range(150))  # a frame that stands in the end adds nothing to see
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(stands.read_bytes()[:-3000])
    with pytest.raises(VideoError, match=r"cut short: expected 30\.00 s, found frames up to [1-4]\.\d\d s"):
        decoded(cut)


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_a_stream_that_begins_between_key_frames_begins_with_its_first_whole_frame(tmp_path, suffix):
    codec, options = JOINED[suffix]
    content = write(tmp_path / f"whole.{suffix}", codec, {**options, "bf": "0"}).read_bytes()
    unit = {"ts": 188, "mpg": 2048}[suffix]
    path = tmp_path / f"part.{suffix}"
    # The tables in the first packets, and then the stream from somewhere behind the first key frame.
    path.write_bytes(content[: 3 * unit] * (suffix == "ts") + content[len(content) // 4 // unit * unit :])
    clips = decoded(path)
    first = number_of(clips.pixels[0][0][0])
    assert first > 0
    assert_frames(path, (FRAMES - first) / FPS, range(first, FRAMES), first)


CUT = {
    "mkv": ("libx264", H264, "cut short: expected 12.0"),
    "webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}, "cut short: expected 12.0"),
    "avi": ("mpeg4", {"bf": "2", "g": "60"}, "cut short: expected 12.0"),
    "flv": ("libx264", H264, "cut short: expected 12.0"),
    "asf": ("mpeg4", {"g": "60"}, "cut short: bytes are missing at its end"),
    "mp4": ("libx264", H264, "cut short: expected 12.0"),
    "ivf": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}, "cut short: expected 12.0|damaged"),
}


@pytest.mark.parametrize("suffix", CUT)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_file_that_lost_its_end_is_cut_short_in_every_mode_and_for_every_id(tmp_path, suffix, mode):
    codec, options, reason = CUT[suffix]
    mux = {"movflags": "faststart"} if suffix == "mp4" else {}
    content = write(tmp_path / f"whole.{suffix}", codec, options, **mux).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: len(content) * 6 // 10])
    for number in range(10):
        with pytest.raises(VideoError, match=reason):
            decoded(path, mode, f"id {number}")


def test_a_whole_file_is_known_to_be_whole(tmp_path):
    for name, kind in {
        "a.mkv": JOINED["mkv"],
        "a.avi": JOINED["avi"],
        "a.flv": ("flv", {}),
        "a.asf": ("wmv2", {}),
    }.items():
        path = write(tmp_path / name, *kind, stamps=range(60))
        with open_video(str(path)) as video:
            assert (video.end.is_whole, video.end.is_joined) == (True, False), name
            assert timing_of(video).length_s == pytest.approx(2.0, abs=0.04)
        path.write_bytes(path.read_bytes()[:-100])
        with open_video(str(path)) as video:
            assert video.end.is_whole is False, name


def test_motion_jpeg_without_a_container_is_not_called_a_picture(tmp_path):
    path = write(tmp_path / "a.mjpeg", "mjpeg", {"strict": "unofficial"}, range(10))
    with pytest.raises(VideoError, match="states neither time stamps nor a frame rate"):
        decoded(path)


@pytest.mark.parametrize("suffix", ["mp4", "ts", "h264"])
@pytest.mark.parametrize("limits_s", [(2.0, 5.5), (3.01, None), (None, 4.0), (11.5, 20.0), (7.0, 7.1)])
def test_of_a_segment_clips_duration_and_times_are_those_of_the_segment(tmp_path, suffix, limits_s):
    start_s, end_s = limits_s[0] or 0.0, min(limits_s[1] or 12.0, 12.0)
    path = write(tmp_path / f"whole.{suffix}")
    clips = decode_clips(str(path), "id", "eval", SAMPLING, [SIZE_PX], start_s=limits_s[0], end_s=limits_s[1])
    assert clips.geometry.duration_s == pytest.approx(end_s - start_s, abs=0.04)
    plans = plan_clips("id", "eval", clips.geometry, SAMPLING)
    last = int(np.ceil(FPS * end_s - 0.05)) - 1
    for plan, pixels, position in zip(plans, clips.pixels[0], clips.positions, strict=True):
        expected = [min(int(FPS * (start_s + time_s + 1.1e-3)), last) for time_s in plan.times_s]
        assert [number_of(frame) for frame in pixels] == expected
        begin, end = (max(number / FPS - start_s, 0) for number in (expected[0], expected[-1]))
        assert position[5:] == pytest.approx([begin, end], abs=2e-3)


def test_a_segment_behind_the_end_of_its_video_has_a_reason(tmp_path):
    path = write(tmp_path / "short.mp4", stamps=range(30))
    with pytest.raises(
        VideoError, match=r"segment: expected a start before the end of the video at 1\.00 s, found 2 s"
    ):
        decode_clips(str(path), "id", "eval", SAMPLING, [32], start_s=2.0, end_s=3.0)


def test_a_stream_of_sound_that_begins_late_is_skipped(tmp_path):
    """As in recordings of television."""
    silent, path = write(tmp_path / "silent.ts", stamps=range(300)), tmp_path / "late.ts"
    with av.open(str(silent)) as source, av.open(str(tmp_path / "sound.ts"), "w") as out:
        sound = out.add_stream("aac", rate=48000, layout="mono")
        video = out.add_stream_from_template(source.streams.video[0])
        for number in range(200):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate, silence.pts, silence.time_base = 48000, 1024 * number, Fraction(1, 48000)
            out.mux(sound.encode(silence))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
    # The picture of the second part has another stream, too: it is not shown.
    path.write_bytes(silent.read_bytes() * 20 + (tmp_path / "sound.ts").read_bytes())
    clips = decoded(path)
    assert clips.geometry.duration_s >= 199
