"""Blocks have one row per video, in order, and the pixels of the good videos are contiguous and not copied."""

import numpy as np
import pyarrow as pa
import pytest

from scale_ray.config import Sampling
from scale_ray.decoding.decode import decode_clips, video_bytes
from scale_ray.decoding.decoder_process import Decoder, SharedPixels
from scale_ray.extraction import pixel_blocks
from scale_ray.extraction.pixel_blocks import decode_videos, pixels_of

SAMPLING = Sampling(clips=3, frames=4)
INPUT_SIZES_PX = (32, 48)
GOOD = [f"approach/approach_00{number}.mp4" for number in range(4)]
BAD = "approach/empty.mp4"


@pytest.fixture(scope="module")
def decoder():
    with Decoder(timeout_s=60, memory_gib=8) as decoder:
        yield decoder


@pytest.fixture
def shared(monkeypatch) -> list[SharedPixels]:
    """Every piece of shared memory that is created."""
    created: list[SharedPixels] = []

    class Recorded(SharedPixels):
        def __init__(self, num_bytes: int) -> None:
            super().__init__(num_bytes)
            created.append(self)

    monkeypatch.setattr(pixel_blocks, "SharedPixels", Recorded)
    monkeypatch.setattr(pixel_blocks, "_buffers", [])
    return created


def rows(videos, names, mode="train"):
    return [
        {"video_id": f"{number}-{name}", "path": str(videos / name), "mode": mode, "shard": 7}
        for number, name in enumerate(names)
    ]


def blocks_of(videos, decoder, names, per_block, mode="train") -> list[pa.Table]:
    return list(decode_videos(rows(videos, names, mode), decoder, SAMPLING, INPUT_SIZES_PX, per_block))


CASES = {
    "good": GOOD,
    "bad-first": [BAD, *GOOD],
    "bad-middle": [GOOD[0], BAD, GOOD[1], GOOD[2], BAD, BAD, GOOD[3]],
    "bad-last": [*GOOD[:3], BAD],
    "bad-alone-last": [*GOOD[:2], BAD, BAD],
    "one": GOOD[:1],
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("per_block", [1, 3])
@pytest.mark.parametrize("names", CASES.values(), ids=CASES)
def test_rows_and_pixels_are_those_of_a_plain_call(videos, decoder, names, per_block, mode):
    blocks = blocks_of(videos, decoder, names, per_block, mode)
    table = pa.concat_tables(blocks)
    assert table["video_id"].to_pylist() == [row["video_id"] for row in rows(videos, names)]
    assert set(table["mode"].to_pylist()) == {mode}
    assert set(table["shard"].to_pylist()) == {7}
    for block in blocks:
        good = block["positions"].is_valid().to_pylist()
        # Every block except the last one ends with its last good video.
        assert sum(good) == per_block or block is blocks[-1]
        for size in INPUT_SIZES_PX:
            assert block[f"pixels_{size}"].is_valid().to_pylist() == good
            assert len(pixels_of(block, SAMPLING, size)) == sum(good) * SAMPLING.num_clips(mode)
        number = 0
        for row in block.to_pylist():
            if BAD in row["video_id"]:
                assert (row["stage"], row["reason"]) == ("open", "not a readable video: the file is empty")
                assert "VideoError" in row["exception"]
                assert {row[name] for name in ("positions", "height_px", "fps", "pixels_32", "pixels_48")} == {None}
                continue
            name = row["video_id"].partition("-")[2]
            expected = decode_clips(str(videos / name), row["video_id"], mode, SAMPLING, INPUT_SIZES_PX)
            assert row["positions"] == expected.positions.tobytes()
            assert {name: row[name] for name in vars(expected.geometry)} == vars(expected.geometry)
            assert (row["stage"], row["reason"], row["exception"]) == (None, None, None)
            for size, pixels in zip(INPUT_SIZES_PX, expected.pixels, strict=True):
                clips = slice(number * len(pixels), (number + 1) * len(pixels))
                np.testing.assert_array_equal(pixels_of(block, SAMPLING, size)[clips], pixels)
                assert row[f"pixels_{size}"] == pixels.tobytes()
            number += 1


def test_a_block_of_failures_has_no_pixels(videos, decoder):
    [block] = blocks_of(videos, decoder, [BAD, BAD], 3)
    assert block.num_rows == 2
    assert block["reason"].null_count == 0
    for size in INPUT_SIZES_PX:
        assert pixels_of(block, SAMPLING, size).shape == (0, 4, size, size, 3)


def test_no_video_makes_no_block(videos, decoder):
    assert blocks_of(videos, decoder, [], 3) == []


def test_the_pixels_stay_where_the_decoder_wrote_them(videos, decoder, shared):
    blocks = blocks_of(videos, decoder, [GOOD[0], BAD, *GOOD[1:]], 3)
    assert len(blocks) == 2
    for block, memory in zip(blocks, shared, strict=False):
        whole = np.frombuffer(memory.memory, np.uint8)
        assert len(whole) == 3 * video_bytes("train", SAMPLING, INPUT_SIZES_PX)
        for size in INPUT_SIZES_PX:
            pixels = pixels_of(block, SAMPLING, size)
            assert np.shares_memory(pixels, whole)
    first, second = (pixels_of(blocks[0], SAMPLING, size) for size in INPUT_SIZES_PX)
    assert second.ctypes.data - first.ctypes.data == first.nbytes


def test_a_finished_block_is_not_written_again(videos, decoder):
    stream = decode_videos(rows(videos, GOOD), decoder, SAMPLING, INPUT_SIZES_PX, 1)
    first = next(stream)
    before = pixels_of(first, SAMPLING, 32).copy()
    assert len(list(stream)) == 3
    np.testing.assert_array_equal(pixels_of(first, SAMPLING, 32), before)


def test_memory_that_nobody_looks_at_is_used_again(videos, decoder, shared):
    stream = decode_videos(rows(videos, GOOD), decoder, SAMPLING, INPUT_SIZES_PX, 1)
    first = next(stream)
    before = pixels_of(first, SAMPLING, 32).copy()
    kept = pixels_of(first, SAMPLING, 32)  # a view outlives its block
    del first
    assert sum(1 for _ in stream) == 3
    assert len(shared) <= 3, "one has a view, one is being decoded into, one is on its way"
    np.testing.assert_array_equal(kept, before)
    del kept
    assert not any(buffer.in_use for buffer in shared)


def test_parts_of_a_block_and_joined_blocks_are_read_right(videos, decoder):
    """Sliced, joined and serialised, as a data engine may pass them on."""
    blocks = blocks_of(videos, decoder, [BAD, *GOOD[:2], BAD, GOOD[2]], 2)
    joined = pa.concat_tables(blocks)
    assert joined.num_rows == 5
    everything = [pixels_of(block, SAMPLING, 32) for block in blocks]
    np.testing.assert_array_equal(pixels_of(joined, SAMPLING, 32), np.concatenate(everything))
    np.testing.assert_array_equal(pixels_of(joined.slice(2, 2), SAMPLING, 32), everything[0][3:])
    assert len(pixels_of(joined.slice(0, 1), SAMPLING, 32)) == 0
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, joined.schema) as writer:
        writer.write_table(joined)
    again = pa.ipc.open_stream(sink.getvalue()).read_all()
    np.testing.assert_array_equal(pixels_of(again, SAMPLING, 32), np.concatenate(everything))
    validated = joined.combine_chunks()
    validated.validate(full=True)
