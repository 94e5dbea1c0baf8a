"""A feature store to a ranking of settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.config import PretrainConfig, SweepConfig, flag_of
from scale_ray.console import Console, Result
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.trials import Trial, run_trials, validation_split
from scale_ray.pretraining import check_trainable
from scale_ray.store import FeatureStore
from scale_ray.tracking import Experiment, RunFolder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweepResult(Result):
    """The trials, best first."""

    settings: Sequence[Trial]
    num_train_videos: int
    num_validation_videos: int

    def lines(self) -> list[str]:
        best = self.settings[0]
        names = [name.partition(".")[2] for name in best.options]
        head = "".join(f"{name:>14}" for name in names) + f"{best.monitor:>26}{'loss':>10}"
        rows = [
            "".join(f"{value:>14}" for value in trial.options.values()) + f"{trial.value:>26.3f}{trial.loss:>10.3f}"
            for trial in self.settings
        ]
        flags = " ".join(f"{flag_of(name)} {value}" for name, value in zip(names, best.options.values(), strict=True))
        return [
            head,
            "-" * len(head),
            *rows,
            f"{self.num_train_videos} videos trained on, {self.num_validation_videos} of the training split held out "
            "to rank the settings",
            f"best setting: {flags}",
        ]

    def values(self) -> dict[str, Any]:
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """A row per trial, best first: its options, what it reached and its loss."""
        import pandas as pd

        rows = [
            {name.partition(".")[2]: value for name, value in trial.options.items()}
            | {trial.monitor: trial.value, "loss": trial.loss}
            for trial in self.settings
        ]
        return pd.DataFrame(rows)


def sweep(store: str, run: str = "sweep", *, runs: str = "runs", config: SweepConfig, console: Console) -> SweepResult:
    """Train every combination of the grid, and rank them on videos held out of the training split.

    Raises
    ------
    UserError
        Before anything is started, for values that cannot be trained on this store.
    RunFailed
        If a trial ended with an error.
    """
    features = FeatureStore(store)
    pretrain, grid = config.part(PretrainConfig), config.tried()
    train, validation = validation_split(features, config.searching.validation_share, config.splits.split)
    for name, values in grid.items():
        for value in values:
            check_trainable(len(train), train.num_clips, pretrain.with_values({name: value}).sets.set_size)
    folder = RunFolder(runs, run)
    described = {
        **pretrain.to_dict(),
        "searching": config.searching.to_dict(),
        "grid": {name: list(values) for name, values in grid.items()},
        "store": {"location": features.location},
    }
    folder.check_config(described)
    with connected(config.cluster, verbose=console.verbose) as size:
        num_trials = math.prod(map(len, grid.values()))
        at_once = min(config.searching.trials_at_once or size.gpus or size.cpus, num_trials)
        experiment = Experiment(config.tracking, folder.runs, console)
        folder.write_config(described)
        described_run = {"grid": described["grid"], "store": described["store"]}
        also_in = f"the folders of the trials in {folder.location} have all metrics"
        with experiment.start(folder.name, described_run, also_in=also_in) as parent:
            folder.remember_mlflow_run(parent.run_id)
            console.say(f"{num_trials} trials, {at_once} at a time, {len(train)} videos each")
            trials = run_trials(folder, features, config, experiment, parent, size, console)
            parent.options({"best": trials[0].options})
            parent.metrics({f"best_{trials[0].monitor}": trials[0].value})
    return SweepResult(trials, len(train), len(validation))
