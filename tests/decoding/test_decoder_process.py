"""A decoder that crashes, hangs or uses all memory costs only one video."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from scale_ray.config import Sampling
from scale_ray.decoding import decoder_process
from scale_ray.decoding.decode import decode_clips, pixel_shape
from scale_ray.decoding.decoder_process import Decoder, Request, SharedPixels
from scale_ray.errors import VideoError

SAMPLING = Sampling(clips=3, frames=4)
INPUT_SIZES_PX = (32, 48)
NUM_BYTES = [int(np.prod(pixel_shape("train", SAMPLING, size))) for size in INPUT_SIZES_PX]


@pytest.fixture
def pixels() -> SharedPixels:
    return SharedPixels(sum(NUM_BYTES))


@pytest.fixture
def whole(videos: Path) -> str:
    return str(videos / "approach" / "approach_001.mp4")


def request(path: str) -> Request:
    return Request(path, "id", "train", SAMPLING, INPUT_SIZES_PX, (0, NUM_BYTES[0]))


def test_the_child_writes_the_pixels_of_a_plain_call(whole, pixels):
    with Decoder(timeout_s=60, memory_gib=8) as decoder:
        decoded = decoder.decode(request(whole), pixels)
    expected = decode_clips(whole, "id", "train", SAMPLING, INPUT_SIZES_PX)
    np.testing.assert_array_equal(decoded.positions, expected.positions)
    assert decoded.geometry == expected.geometry
    assert decoded.size_bytes == os.path.getsize(whole)
    for array, offset, size in zip(expected.pixels, (0, NUM_BYTES[0]), NUM_BYTES, strict=True):
        assert bytes(pixels.memory[offset : offset + size]) == array.tobytes()


def test_the_child_reports_the_size_of_a_file_at_a_uri(whole, pixels):
    with Decoder(timeout_s=60, memory_gib=8) as decoder:
        assert decoder.decode(request(f"file://{whole}"), pixels).size_bytes == os.path.getsize(whole)


def test_a_bad_video_comes_back_as_its_reason_and_the_child_lives_on(videos, whole, pixels):
    with Decoder(timeout_s=60, memory_gib=8) as decoder:
        with pytest.raises(VideoError, match="the file is empty"):
            decoder.decode(request(str(videos / "approach" / "empty.mp4")), pixels)
        with pytest.raises(VideoError, match="not a readable video: damaged") as caught:
            decoder.decode(request(str(videos / "approach" / "cut_short.mp4")), pixels)
        assert caught.value.stage == "open"
        assert "InvalidDataError" in caught.value.exception
        process = decoder._process
        decoder.decode(request(whole), pixels)
        assert decoder._process is process


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Child processes in which decoding misbehaves in the way that the path names."""
    code = tmp_path / "sitecustomize.py"
    code.write_text(
        """
import os, signal, sys, time
if "scale_ray.decoding.decoder_process" in " ".join(sys.orig_argv):
    import scale_ray.decoding.decoder_process as decoding
    real = decoding.decode_clips
    def decode_clips(source, *rest, **segment):
        if source == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if source == "hang": time.sleep(600)
        if source == "memory": bytearray(64 * 2**30)
        if source == "odd": raise ZeroDivisionError("never seen before")
        return real(source, *rest, **segment)
    decoding.decode_clips = decode_clips
"""
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("crash", "crashed the decoder: signal SIGSEGV"),
        ("hang", "took longer than 1 s"),
        ("memory", "needs more than 8 GiB"),
        ("odd", "ZeroDivisionError: never seen before"),
    ],
)
def test_what_a_decoder_may_do_costs_one_video(broken, whole, pixels, path, reason):
    with Decoder(timeout_s=1, memory_gib=8) as decoder:
        decoder.decode(request(whole), pixels)
        with pytest.raises(VideoError, match=reason) as caught:
            decoder.decode(request(path), pixels)
        assert caught.value.stage == "decode"
        assert np.isfinite(decoder.decode(request(whole), pixels).positions).all()


def test_a_child_killed_between_two_videos_is_replaced(whole, pixels):
    with Decoder(timeout_s=60, memory_gib=8) as decoder:
        decoder.decode(request(whole), pixels)
        assert decoder._process is not None
        os.kill(decoder._process.pid, signal.SIGKILL)
        decoder._process.wait()
        decoder.decode(request(whole), pixels)


def test_a_child_that_cannot_start_says_why(whole, pixels, monkeypatch):
    monkeypatch.setattr(decoder_process.sys, "path", ["/nowhere"])
    monkeypatch.chdir("/")
    monkeypatch.setattr(decoder_process.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"the decoder process did not start \(exit code 1\)"):
        Decoder(timeout_s=60, memory_gib=8).decode(request(whole), pixels)


def test_a_hanging_child_ends_with_its_parent(broken, tmp_path):
    code = """
import sys
from scale_ray.config import Sampling
from scale_ray.decoding.decoder_process import Decoder, Request, SharedPixels
decoder, pixels = Decoder(timeout_s=600, memory_gib=8), SharedPixels(3 * 4 * 32 * 32 * 3)
decoder._ready(pixels)
print(decoder._process.pid, flush=True)
decoder.decode(Request("hang", "id", "train", Sampling(clips=3, frames=4), (32,), (0,)), pixels)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.stdout.close()
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    child.wait(timeout=10)


def test_a_segment_reaches_the_decoder(monkeypatch, pixels):
    asked = []

    def decode(source, video_id, mode, sampling, input_sizes_px, into=None, *, start_s=None, end_s=None):
        asked.append((source, start_s, end_s))
        raise VideoError("open", "only asked")

    monkeypatch.setattr(decoder_process, "decode_clips", decode)
    for segment in ((None, None), (1.0, 2.5), (3.0, None)):
        plain = request("/none.mp4")
        part = Request(*(getattr(plain, name) for name in list(vars(plain))[:6]), *segment)
        assert isinstance(decoder_process._answer(part, pixels.memory, 8), VideoError)
    assert asked == [("/none.mp4", None, None), ("/none.mp4", 1.0, 2.5), ("/none.mp4", 3.0, None)]
