"""The baseline of position and geometry: every column counts, whatever its unit."""

from __future__ import annotations

import numpy as np
import torch
from support.stores import make_store, positions_of

from scale_ray.aggregator import Aggregator
from scale_ray.clips import VideoGeometry
from scale_ray.config import AggregatorOptions, Ingest, Probing
from scale_ray.probes.data import load_probe_split
from scale_ray.probes.evaluation import GEOMETRY_ALONE, probe_table
from scale_ray.probes.inputs import View
from scale_ray.probes.targets import read_targets
from scale_ray.store import FeatureStore

IDS = [f"v{number:02d}" for number in range(60)]
PROBING = Probing(probes=("knn", "retrieval", "clustering"), resamples=10)


def store_of(folder) -> FeatureStore:
    """Videos of two classes: slow and long, or fast and short; their sizes are random, and say nothing."""
    rng = np.random.default_rng(0)
    features = {video_id: rng.normal(size=(8, 4)) for video_id in IDS}
    sizes = {video_id: rng.integers(100, 2000) for video_id in IDS}
    geometries = {
        video_id: VideoGeometry(int(sizes[video_id]), int(sizes[video_id]), 8.0 - 2 * (n % 2), 15.0 + n % 2)
        for n, video_id in enumerate(IDS)
    }
    positions = {video_id: positions_of(rng, 8) for video_id in IDS}
    subsets = ["test" if n % 6 > 3 else "train" for n in range(60)]
    labels = ["slow" if n % 2 == 0 else "fast" for n in range(60)]
    return make_store(
        folder,
        features,
        positions=positions,
        geometries=geometries,
        sides=subsets,
        label=labels,
    )


def test_neighbours_and_clusters_find_what_duration_and_frame_rate_tell(tmp_path):
    store = store_of(tmp_path / "store")
    aggregator = Aggregator(4, AggregatorOptions(width=32, layers=1)).eval()
    table, _ = probe_table(store, [aggregator], PROBING)
    row = next(row for row in table.rows if row.representation == GEOMETRY_ALONE)
    values = {name: estimate.value for name, estimate in row.metrics.items()}
    assert values["knn_top1"] > 0.9, values
    assert values["retrieval_recall_at_1"] > 0.9, values


def test_columns_have_mean_0_and_variance_1_over_the_training_clips_and_constant_ones_are_0(tmp_path):
    store = store_of(tmp_path / "store")
    split = load_probe_split(store, read_targets(store, "label"), "default", Ingest())
    rows = split.refit_rows
    standardisation = View(split.train, "geometry").standardisation(rows)
    clips = View(split.train, "geometry", standardisation=standardisation).whole(rows).flatten(0, 1)
    raw = split.train.geometry[rows].flatten(0, 1)
    varies = raw.amin(0) < raw.amax(0)
    assert 5 < int(varies.sum()) < raw.shape[1]
    torch.testing.assert_close(clips.mean(0), torch.zeros(raw.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(clips.std(0, correction=0), varies.float(), atol=1e-4, rtol=0)
    test = View(split.test, "geometry", standardisation=standardisation).whole(torch.arange(len(split.test)))
    assert torch.equal(test[..., ~varies], torch.zeros_like(test[..., ~varies]))
