"""The gain by pretraining on a store, over several seeds: the trained aggregator against the features alone.

Each seed is used for a training and for its probes. A second case has only the masked clips as candidates
(`--candidates masked`). The report contains the table with its intervals, and the losses and accuracies of the first
and the last epoch of every training. The trainer runs in this process, without Ray.
"""

from __future__ import annotations

import sys

import torch
from common import parser, report

from scale_ray.aggregator.model import Aggregator
from scale_ray.clip_sets.sources import ResidentClips
from scale_ray.config import ObjectiveOptions, PretrainConfig, Probing, Training
from scale_ray.pretraining.trainer import Metrics, Trainer, fit
from scale_ray.probes.evaluation import probe_table
from scale_ray.store.clip_reader import training_clips
from scale_ray.store.feature_store import FeatureStore

CPU = torch.device("cpu")
NAMES = ("loss", "set_loss", "clip_loss", "set_top1", "clip_top1")


class FirstAndLastEpoch:
    """A listener that keeps the metrics of the first and the last epoch of a training."""

    def __init__(self) -> None:
        self.first: Metrics = {}
        self.last: Metrics = {}

    def after_step(self, trainer: Trainer, values: dict[str, torch.Tensor]) -> None: ...

    def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None:
        self.first, self.last = self.first or metrics, metrics


def trained(store: FeatureStore, config: PretrainConfig) -> tuple[Aggregator, dict]:
    clips, _ = training_clips(store)
    epochs = FirstAndLastEpoch()
    trainer = Trainer(ResidentClips.from_clips(clips.read(), CPU), config, device=CPU, origin=store.fingerprint)
    fit(trainer, epochs)
    metrics = {name: [round(epoch[name], 3) for epoch in (epochs.first, epochs.last)] for name in NAMES}
    return trainer.model.eval(), metrics


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("store", help="a feature store with labels, training and test videos")
    arguments.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    arguments.add_argument("--epochs", type=int, default=200, help="epochs of each training")
    arguments.add_argument("--batch", type=int, default=32, help="videos per batch")
    given = arguments.parse_args()
    torch.set_num_threads(2)
    store = FeatureStore(given.store)
    given.store = "STORE"  # local paths do not belong in a report
    figures: dict[str, object] = {
        "backbone": {name: store.fingerprint[name] for name in ("backbone", "weights") if name in store.fingerprint}
    }
    for candidates in ("all", "masked"):
        aggregators, trainings = [], []
        for seed in range(given.seeds):
            config = PretrainConfig(
                objective=ObjectiveOptions(candidates=candidates),
                training=Training(epochs=given.epochs, batch=given.batch, seed=seed, monitor_epochs=0),
            )
            aggregator, metrics = trained(store, config)
            aggregators.append(aggregator)
            trainings.append(metrics)
            print(candidates, seed, metrics, file=sys.stderr, flush=True)
        table, _ = probe_table(store, aggregators, Probing(probes=("knn", "linear")))
        figures[f"candidates {candidates}"] = {"first and last epoch, each seed": trainings, "table": table.values()}
    report("seeds", given, figures)


if __name__ == "__main__":
    main()
