"""What pretraining is worth on a store, over several seeds: the trained aggregator against the features alone.

Each seed is a training of its own, and seeds the probes, too. Beside the reference the masked clips as the only
candidates (`--candidates masked`). Told are the table with its intervals, and of every training the loss and the
accuracies of its first and its last epoch. Without Ray: the same trainer, in this process.
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


class Ends:
    """The first and the last epoch of a training."""

    def __init__(self) -> None:
        self.first: Metrics = {}
        self.last: Metrics = {}

    def after_step(self, trainer: Trainer, values: dict[str, torch.Tensor]) -> None: ...

    def after_epoch(self, trainer: Trainer, metrics: Metrics) -> None:
        self.first, self.last = self.first or metrics, metrics


def trained(store: FeatureStore, config: PretrainConfig) -> tuple[Aggregator, dict]:
    clips, _ = training_clips(store)
    ends = Ends()
    trainer = Trainer(ResidentClips.of(clips.read(), CPU), config, device=CPU, origin=store.fingerprint)
    fit(trainer, ends)
    told = {name: [round(end[name], 3) for end in (ends.first, ends.last)] for name in NAMES}
    return trainer.model.eval(), told


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("store", help="a feature store with labels, a training and a test split")
    arguments.add_argument("--seeds", type=int, default=5, help="seeds, from 0 on")
    arguments.add_argument("--epochs", type=int, default=200, help="epochs of each training")
    arguments.add_argument("--batch", type=int, default=32, help="videos of a batch")
    given = arguments.parse_args()
    torch.set_num_threads(2)
    store = FeatureStore(given.store)
    given.store = "STORE"  # a path of this machine is nobody else's matter
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
            aggregator, told = trained(store, config)
            aggregators.append(aggregator)
            trainings.append(told)
            print(candidates, seed, told, file=sys.stderr, flush=True)
        table, _ = probe_table(store, aggregators, Probing(probes=("knn", "linear")))
        figures[f"candidates {candidates}"] = {"first and last epoch, each seed": trainings, "table": table.values()}
    report("seeds", given, figures)


if __name__ == "__main__":
    main()
