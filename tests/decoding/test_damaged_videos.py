"""Damaged files give clips of the right shape or an error with a reason, and never end the decoder."""

from pathlib import Path

import av
import numpy as np
import pytest
from support.videos import KEPT_BACK, encode

from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips, pixel_shape
from scale_ray.decoding.decoder_process import Decoded, Decoder, Request, SharedPixels
from scale_ray.errors import VideoError

SAMPLING = Sampling(frames=4, clips=4)
SHAPE = pixel_shape("train", SAMPLING, 32)
WHOLE = {
    ".mp4": ("libx264", {**KEPT_BACK, "g": "24"}),
    ".avi": ("mpeg4", {"g": "30", "bf": "2"}),
    ".ts": ("mpeg2video", {"g": "15", "bf": "2"}),
    ".webm": ("libvpx-vp9", {"g": "60", "deadline": "realtime", "cpu-used": "8"}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        suffix: encode(folder / f"whole{suffix}", codec, seconds=6, **options).read_bytes()
        for suffix, (codec, options) in WHOLE.items()
    }


def damaged(content: bytes, rng: np.random.Generator, *, header_too: bool) -> bytes:
    """The content cut short at a random place, with random bytes changed, or both."""
    data = np.frombuffer(content, np.uint8).copy()
    kind = rng.integers(3)
    if kind != 0:
        first = 0 if header_too else len(data) // 4
        places = rng.integers(first, len(data), int(rng.integers(1, 60)))
        data[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
    return data[: int(rng.integers(1, len(data))) if kind != 1 else None].tobytes()


def attempt(decoder: Decoder, path: Path, pixels: SharedPixels) -> tuple[Decoded | None, VideoError | None]:
    try:
        return decoder.decode(Request(str(path), "id", "train", SAMPLING, (32,), (0,)), pixels), None
    except VideoError as error:
        return None, error


def test_of_sixty_damaged_files_each_gives_clips_or_a_reason(whole, tmp_path):
    rng = np.random.default_rng(7)
    outcomes = []
    pixels = SharedPixels(int(np.prod(SHAPE)))
    good = tmp_path / "good.mp4"
    good.write_bytes(whole[".mp4"])
    with Decoder(timeout_s=20, memory_gib=8) as decoder:
        for number in range(60):
            suffix = list(WHOLE)[number % len(WHOLE)]
            path = tmp_path / f"damaged-{number}{suffix}"
            path.write_bytes(damaged(whole[suffix], rng, header_too=number % 8 < 4))
            decoded, error = attempt(decoder, path, pixels)
            outcomes.append("decoded" if decoded else "failed")
            if error is not None:
                assert error.stage in ("open", "decode")
                assert error.reason.strip()
                assert "took longer" not in error.reason, "a file of 6 s hung the decoder"
                continue
            assert decoded.positions.shape == (4, 7)
            assert np.isfinite(decoded.positions).all()
            assert decoded.geometry.duration_s < 3600, "a changed byte turned seconds into hours"
        after = attempt(decoder, good, pixels)[0]
    expected = decode_clips(str(good), "id", "train", SAMPLING, [32])
    np.testing.assert_array_equal(after.positions, expected.positions)
    assert bytes(pixels.memory) == expected.pixels[0].tobytes()
    assert {outcome: outcomes.count(outcome) > 8 for outcome in set(outcomes)} == {"failed": True, "decoded": True}


@pytest.mark.parametrize("mode", ["train", "augmented", "eval"])
def test_half_of_a_file_that_begins_with_its_index_is_cut_short(tmp_path, mode):
    path = encode(tmp_path / "whole.mp4", **KEPT_BACK)
    half = tmp_path / "half.mp4"
    half.write_bytes(_faststart(path, tmp_path))
    for source in (str(half), lambda: half.open("rb")):
        with pytest.raises(
            VideoError, match=r"^(cut short: expected 10\.\d+ s, found frames up to [3-6]|damaged)"
        ) as caught:
            decode_clips(source, "id", mode, Sampling(clips=16), [32])
        assert caught.value.stage == "decode"


def _faststart(path: Path, folder: Path) -> bytes:
    """The first half of the same video after its index has been moved to the front."""
    moved = folder / "moved.mp4"
    with av.open(str(path)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as out:
        target = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = target
                out.mux(packet)
    content = moved.read_bytes()
    assert content.index(b"moov") < 100
    return content[: len(content) // 2]
