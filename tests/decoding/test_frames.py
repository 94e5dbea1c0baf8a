"""Skipping changes no result: frames, positions and time stamps are the same as when reading from the start."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from support.command import SHARED
from support.videos import INPUT_SIZE_PX, KEPT_BACK, encode

from scale_ray.config import Sampling
from scale_ray.decoding import decode as decoding
from scale_ray.decoding.decode import DecodedClips, decode_clips
from scale_ray.decoding.frames import FrameReader
from scale_ray.errors import VideoError

SAMPLING = Sampling(clips=4, frames=4, stride=2)


def repeated(once: Path, path: Path, *, times: int = 12, shift_s: float = 0.0, **options: str) -> Path:
    """The packets of ten seconds, repeated `times` times and shifted by `shift_s`."""
    with av.open(str(path), "w", options=options) as out:
        target = None
        for round_ in range(times):
            with av.open(str(once)) as source:
                stream = source.streams.video[0]
                target = target or out.add_stream_from_template(stream)
                shift = round((10 * round_ + shift_s) / stream.time_base)
                for packet in source.demux(stream):
                    if packet.size == 0:
                        continue
                    packet.pts = None if packet.pts is None else packet.pts + shift
                    packet.dts = None if packet.dts is None else packet.dts + shift
                    packet.stream = target
                    out.mux(packet)
    return path


class Counted(FrameReader):
    """Counts the decoded frames; with `forward`, reads from the start without seeking."""

    forward = False
    num_decoded = 0

    def __init__(self, video, timing, *, by_stamp: bool, may_seek: bool) -> None:
        super().__init__(video, timing, by_stamp=by_stamp, may_seek=may_seek and not Counted.forward)

    def _decoded(self):
        for decoded in super()._decoded():
            Counted.num_decoded += 1
            yield decoded


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    monkeypatch.setattr(decoding, "FrameReader", Counted)


def read(
    path: Path, video_id: str, *, forward: bool, mode="train", sampling=SAMPLING
) -> tuple[DecodedClips | VideoError, int]:
    Counted.forward, Counted.num_decoded = forward, 0
    try:
        return decode_clips(str(path), video_id, mode, sampling, [INPUT_SIZE_PX]), Counted.num_decoded
    except VideoError as error:
        return error, Counted.num_decoded


def assert_exact(path: Path, video_ids: str, **kind) -> tuple[int, int]:
    """Check that skipping changes no result; return the frames decoded with and without it, for all ids together."""
    sparse_decoded, all_decoded = 0, 0
    for video_id in video_ids:
        (sparse, fewer), (whole, number) = (read(path, video_id, forward=forward, **kind) for forward in (False, True))
        sparse_decoded, all_decoded = sparse_decoded + fewer, all_decoded + number
        if isinstance(whole, VideoError) or isinstance(sparse, VideoError):
            assert (repr(sparse), str(sparse)) == (repr(whole), str(whole)), video_id
            continue
        np.testing.assert_array_equal(sparse.positions, whole.positions, err_msg=video_id)
        np.testing.assert_array_equal(sparse.pixels[0], whole.pixels[0], err_msg=video_id)
        assert sparse.geometry == whole.geometry
    return sparse_decoded, all_decoded


def video_of(folder: Path, suffix: str, codec: str, options: dict[str, str], **mux) -> Path:
    return repeated(encode(folder / f"once{suffix}", codec, **options), folder / f"long{suffix}", **mux)


H264_48 = ("libx264", {**KEPT_BACK, "g": "48"})
B_FRAMES = {"g": "60", "bf": "2"}
FAST_VP9 = {"g": "60", "deadline": "realtime", "cpu-used": "8"}
INDEXED = {
    "key-every-12": (".mp4", "libx264", {**KEPT_BACK, "g": "12"}, {}),
    "key-every-250": (".mp4", "libx264", {**KEPT_BACK, "g": "250", "keyint_min": "250"}, {}),
    "open-gop": (".mp4", "libx264", {**KEPT_BACK, "g": "30", "x264-params": "open-gop=1"}, {}),
    "begins-late": (".mp4", *H264_48, {"shift_s": 7.3}),
    "begins-early": (".mp4", *H264_48, {"shift_s": -0.21, "avoid_negative_ts": "disabled"}),
    "fragments": (".mp4", *H264_48, {"movflags": "frag_keyframe+empty_moov"}),
    "mpeg2": (".avi", "mpeg2video", B_FRAMES, {}),
    "mpeg4": (".avi", "mpeg4", B_FRAMES, {}),
    "mpeg4-mp4": (".mp4", "mpeg4", B_FRAMES, {}),
    "vp9": (".webm", "libvpx-vp9", FAST_VP9, {}),
}


@pytest.mark.parametrize("name", INDEXED)
def test_of_two_minutes_few_frames_are_decoded_and_they_are_exact(tmp_path, name):
    suffix, codec, options, mux = INDEXED[name]
    sparse, whole = assert_exact(video_of(tmp_path, suffix, codec, options, **mux), "ab")
    assert whole > 6000
    assert sparse < whole / 4, f"{sparse} of {whole} frames"


UNINDEXED = {
    "h264": (".ts", *H264_48),
    "h264-open-gop": (".ts", "libx264", {**KEPT_BACK, "g": "30", "x264-params": "open-gop=1"}),
    "mpeg2": (".ts", "mpeg2video", B_FRAMES),
    "mpeg4": (".ts", "mpeg4", B_FRAMES),
    "mpeg4-no-b": (".ts", "mpeg4", {"g": "60"}),
    "mpeg2-program": (".mpg", "mpeg2video", {"g": "15", "bf": "2"}),
    "mpeg4-program": (".mpg", "mpeg4", {"g": "60"}),
    "flv": (".flv", *H264_48),
}


@pytest.mark.parametrize("name", UNINDEXED)
def test_without_an_index_the_frames_are_exact(tmp_path, name):
    suffix, codec, options = UNINDEXED[name]
    sparse, whole = assert_exact(video_of(tmp_path, suffix, codec, options), "ace")
    assert sparse < 1.1 * whole, "seeks to the wrong place cost more than they save"


def test_a_stream_refreshed_without_key_frames_is_exact(tmp_path):
    """Intra refresh of x264: after a seek, pictures are complete only some seconds later."""
    options = {**KEPT_BACK, "g": "60", "intra-refresh": "1"}
    assert_exact(video_of(tmp_path, ".mp4", "libx264", options), "ab")


def test_an_index_that_is_read_late_is_used(tmp_path):
    """The index of Matroska is built while the file is read, so it may end at the current position."""
    path = video_of(tmp_path, ".webm", "libvpx-vp9", FAST_VP9)
    sparse, whole = assert_exact(path, "ef")
    assert sparse < whole / 4, f"{sparse} of {whole} frames"


def test_clocks_that_start_anew_in_the_middle_are_read_alike(tmp_path):
    """Two transport streams joined one after the other, as by `cat`."""
    once = encode(tmp_path / "once.ts", *H264_48[:1], **H264_48[1])
    half = repeated(once, tmp_path / "half.ts", times=6).read_bytes()
    (tmp_path / "both.ts").write_bytes(half + half)
    assert_exact(tmp_path / "both.ts", "abc")


@pytest.mark.parametrize("mode", ["augmented", "eval"])
@pytest.mark.parametrize("path", sorted((SHARED / "odd").glob("*")), ids=lambda path: path.name)
def test_odd_files_are_read_alike(path, mode):
    assert_exact(path, "a", mode=mode, sampling=Sampling(clips=4, frames=4, stride=1, eval_times=4))


def test_a_frame_size_that_changes_on_the_way_is_no_error(tmp_path):
    small, large = (encode(tmp_path / f"{size[0]}.ts", size=size, g="30") for size in ((64, 96), (90, 120)))
    path = tmp_path / "both.ts"
    once = repeated(large, tmp_path / "later.ts", times=1, shift_s=10.0)
    path.write_bytes(small.read_bytes() + once.read_bytes())
    for mode in ("train", "augmented", "eval"):
        clips, _ = read(path, "a", forward=False, mode=mode, sampling=Sampling(clips=12))
        assert isinstance(clips, DecodedClips), clips
        assert clips.positions[:, 6].max() > 10, "no clip is from the second half"
        if mode == "train":
            # The pattern covers the frame: a crop outside it would be flat.
            assert clips.pixels[0].std((2, 3)).min() > 5


PEAK = """
import re, sys
from pathlib import Path
from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips
decode_clips(sys.argv[1], "id", "train", Sampling(), [224])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_ten_minutes_take_no_more_memory_than_ten_seconds(tmp_path):
    once = encode(tmp_path / "once.mp4", size=(240, 320), **KEPT_BACK, g="48")
    long = repeated(once, tmp_path / "long.mp4", times=60)
    short_kib, long_kib = (
        int(subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True).stdout)
        for path in (once, long)
    )
    assert long_kib < 1.2 * short_kib
