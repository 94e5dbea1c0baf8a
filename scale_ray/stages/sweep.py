"""The search over mask ratio and set size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scale_ray.config import Cluster, PretrainConfig, Probing, Searching, Tracking
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.trials import (
    Setting,
    _search,
    validation_split,
)
from scale_ray.store.feature_store import FeatureStore
from scale_ray.tracking.mlflow import Experiment
from scale_ray.tracking.run_folder import RunFolder


@dataclass(frozen=True)
class SweepResult:
    """The trials, best first."""

    settings: list[Setting]
    num_train_videos: int
    num_validation_videos: int

    def lines(self) -> list[str]:
        names = [name.partition(".")[2] for name in self.settings[0].options]
        head = "".join(f"{name:>14}" for name in names) + f"{self.settings[0].monitor:>26}{'loss':>10}"
        rows = [
            "".join(f"{value:>14}" for value in setting.options.values())
            + f"{setting.value:>26.3f}{setting.loss:>10.3f}"
            for setting in self.settings
        ]
        best = " ".join(
            f"--{name.replace('_', '-')} {value}"
            for name, value in zip(names, self.settings[0].options.values(), strict=True)
        )
        return [
            head,
            "-" * len(head),
            *rows,
            f"{self.num_train_videos} videos trained on, {self.num_validation_videos} of the training split held out "
            "to rank the settings",
            f"best setting: {best}",
        ]


def sweep(
    store: str,
    run: str,
    runs: str,
    grid: Mapping[str, Sequence[Any]],
    *,
    config: PretrainConfig,
    searching: Searching,
    probing: Probing,
    tracking: Tracking,
    cluster: Cluster,
    say: Callable[[str], None],
    quiet: bool = False,
    verbose: bool = False,
) -> SweepResult:
    """Train every combination of the grid, `{"sets.mask_ratio": [...], ...}`, and rank them.

    Raises
    ------
    UserError
        Before anything is started, for values that cannot be trained on this store.
    RunFailed
        Where a trial ended with an error.
    """
    from scale_ray.pretraining.trainer import check_trainable

    features_store = FeatureStore(store)
    train, validation = validation_split(features_store, searching.validation_share, config.splits.split)
    for name, values in grid.items():
        for value in values:
            check_trainable(len(train), train.num_clips, config.with_values({name: value}).sets.set_size)
    folder = RunFolder(runs, run)
    described = {
        **config.to_dict(),
        "searching": searching.to_dict(),
        "grid": {name: list(values) for name, values in grid.items()},
        "store": {"location": features_store.location},
    }
    folder.require(described)
    with connected(cluster, verbose=verbose) as size:
        num_trials = math.prod(len(values) for values in grid.values())
        at_once = searching.trials_at_once or size.gpus or size.cpus
        experiment = Experiment(tracking, folder.runs)
        folder.claim(described)
        with experiment.start(folder.name, {"grid": described["grid"], "store": described["store"]}) as parent:
            folder.remember_mlflow_run(parent.run_id)
            say(f"{num_trials} trials, {min(at_once, num_trials)} at a time, {len(train)} videos each")
            settings = _search(
                folder, features_store, grid, config, searching, probing, experiment, parent, size, quiet
            )
            best = settings[0]
            parent.options({"best": best.options})
            parent.metrics({f"best_{best.monitor}": best.value})
    return SweepResult(settings, len(train), len(validation))
