"""Cases with a known answer: classes that only a set of clips can predict, and labels that nothing can predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.stores import make_store, positions_of

from scale_ray.aggregator.model import Aggregator
from scale_ray.clip_sets.sources import ResidentClips
from scale_ray.config import AggregatorOptions, ObjectiveOptions, PretrainConfig, Probing, Sets, Training
from scale_ray.pretraining.trainer import Metrics, Trainer, fit
from scale_ray.probes.evaluation import (
    BACKBONE_ALONE,
    GEOMETRY_ALONE,
    RANDOM_AGGREGATOR,
    TRAINED_AGGREGATOR,
    probe_table,
)
from scale_ray.store.clip_reader import training_clips
from scale_ray.store.feature_store import FeatureStore

CPU = torch.device("cpu")
SCENES, CLIPS = 5, 16


class Silent:
    def after_step(self, trainer: Trainer, values: dict[str, torch.Tensor]) -> None: ...

    def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None: ...


def scene_after_scene(folder: Path, num_videos: int, *, labels_known: bool) -> FeatureStore:
    """Videos that show one of five scenes and then another; the class is the direction of this step around the five.

    Any two scenes occur in either order, and every scene occurs as the first and the second of either class. So a
    single clip does not predict the class, with or without its time, and neither do all clips without their times: it
    takes a clip of each scene, and which of them came first.
    """
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=(SCENES, 16))
    features, positions, labels = {}, {}, []
    for number in range(num_videos):
        times_s = rng.uniform(0, 6, CLIPS)
        first, step = rng.integers(SCENES), rng.integers(1, SCENES)
        shown = np.where(times_s < 3, first, (first + step) % SCENES)
        video_id = f"v{number:03d}"
        features[video_id] = scenes[shown] + 0.1 * rng.normal(size=(CLIPS, 16))
        positions[video_id] = positions_of(rng, CLIPS, times_s)
        forward = step <= SCENES // 2
        labels.append(("forward" if forward else "back") if labels_known else str(rng.integers(2)))
    subsets = ["test" if number % 3 == 0 else "train" for number in range(num_videos)]
    return make_store(folder / "store", features, positions=positions, sides=subsets, label=labels)


def trained(store: FeatureStore, epochs: int) -> Aggregator:
    config = PretrainConfig(
        sets=Sets(),
        aggregator=AggregatorOptions(width=64),
        objective=ObjectiveOptions(prediction_hidden=128, target_hidden=128),
        training=Training(epochs=epochs, batch=100, monitor_epochs=0, learning_rate=2e-3),
    )
    clips, _ = training_clips(store)
    trainer = Trainer(ResidentClips.from_clips(clips.read(), CPU), config, device=CPU, origin=store.origin)
    fit(trainer, Silent())
    return trainer.model.eval()


PROBING = Probing(
    probes=("knn", "linear"),
    probe_min_steps=300,
    learning_rates=(3e-3,),
    weight_decays=(1e-4,),
    resamples=200,
)
# Its network is large: 80 steps of 50 videos.
MLP = replace(PROBING, probes=("mlp",), probe_epochs=10, probe_min_steps=20, probe_batch=50, probe_set_size=4)


@pytest.mark.slow
def test_what_only_a_set_can_tell_is_told_by_the_trained_aggregator_and_not_by_the_feature(tmp_path):
    store = scene_after_scene(tmp_path, 600, labels_known=True)
    aggregator = trained(store, 200)
    table, mlp_table = (probe_table(store, [aggregator], probing)[0] for probing in (PROBING, MLP))
    values = {row.representation: {name: e.value for name, e in row.metrics.items()} for row in table.rows}
    for row in mlp_table.rows:
        values[row.representation] |= {name: e.value for name, e in row.metrics.items()}
    for name in (GEOMETRY_ALONE, BACKBONE_ALONE):
        for metric in ("knn_top1", "linear_top1", "mlp_top1"):
            assert values[name][metric] < 0.62, (name, values[name])
    assert values[TRAINED_AGGREGATOR]["linear_top1"] > 0.85, values
    assert values[TRAINED_AGGREGATOR]["linear_top1"] > values[RANDOM_AGGREGATOR]["linear_top1"] + 0.1, values
    assert table.gains["linear_top1"].low > 0.2


@pytest.mark.slow
def test_random_labels_give_chance_for_every_representation(tmp_path):
    store = scene_after_scene(tmp_path, 600, labels_known=False)
    aggregator = trained(store, 20)
    table, mlp_table = (probe_table(store, [aggregator], probing)[0] for probing in (PROBING, MLP))
    for row in [*table.rows, *mlp_table.rows]:
        for name, estimate in row.metrics.items():
            assert abs(estimate.value - 0.5) < 0.12, (row.representation, name, estimate)
    assert abs(table.gains["linear_top1"].value) < 0.15
