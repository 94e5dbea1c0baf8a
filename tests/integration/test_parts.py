"""Two commands at once, each with a part of the corpus, fill one store as one command does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.command import BACKBONE, Command, Extracted
from support.stores import read_clips

from scale_ray.store import FeatureStore, verify

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_two_commands_with_a_part_each_fill_one_store(
    scale_ray: Command, videos: Path, extracted: Extracted, tmp_path: Path
):
    def extract(*options: str):
        return scale_ray("extract", videos, "--store", tmp_path / "s", *BACKBONE, "--cpus", "1", "--json", *options)

    with ThreadPoolExecutor() as threads:
        ended = list(threads.map(lambda part: extract("--part", part), ("1/2", "2/2")))
    assert [each.code for each in ended] == [3, 3], [each.err for each in ended]  # each part has a broken file
    summaries = [json.loads(each.out) for each in ended]
    assert sum(summary["num_videos"] for summary in summaries) == 35
    assert sum(summary["num_extracted"] for summary in summaries) == 32
    store, whole = FeatureStore(str(tmp_path / "s")), FeatureStore(str(extracted.store))
    assert store.videos().equals(whole.videos())
    assert verify(store) == []
    for mode in ("train", "eval"):
        mine, expected = read_clips(store, mode), read_clips(whole, mode)
        assert mine.video_ids == expected.video_ids
        np.testing.assert_array_equal(mine.positions, expected.positions)
        # Batches of other videos and another number of threads round differently.
        np.testing.assert_allclose(mine.features, expected.features, rtol=0.01, atol=0.01)
    again = json.loads(extract().out)
    assert (again["num_done"], again["num_extracted"], again["num_skipped"]) == (32, 0, 3)
