"""A feature store to a ranking of settings."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import yaml

from scale_ray.config import (
    PretrainConfig,
    ProbeConfig,
    Range,
    SweepConfig,
    Training,
    domain_text,
    flag_of,
    lowest_and_highest,
    setting_name,
)
from scale_ray.console import Console, Result
from scale_ray.distributed.cluster import connected
from scale_ray.distributed.resources import ClusterSize, TrialSizes, trial_sizes
from scale_ray.errors import RunFailed, UserError, first_line
from scale_ray.files.locations import atomic_write, check_within, join
from scale_ray.hashing import digest
from scale_ray.pretraining import check_trainable
from scale_ray.probes import ranking_of
from scale_ray.reports import (
    search_description,
    setting_rows,
    sweep_description,
    sweep_figures,
    sweep_page,
    sweep_tables,
)
from scale_ray.search import (
    FAILED,
    Setting,
    SettingResult,
    TrialResult,
    TrialResults,
    folds_of,
    grid_settings,
    key_of,
    random_settings,
    ranked,
)
from scale_ray.stages.pretrain import PretrainResult, pretrain_below
from scale_ray.stages.probe import ProbeResult, probe_below
from scale_ray.store import FeatureStore, StoredClips, check_modes, training_clips
from scale_ray.tracking import Experiment, RunFolder, RunRecord

if TYPE_CHECKING:
    import pandas as pd

    from scale_ray.distributed.trial_queue import Settings

_MAX_SHOWN = 30
_MAX_REASONS = 3
# Options of the search that decide what a trial's result means; the others may change from one command to the next.
_DECISIVE = ("folds", "rank_by", "early_stopping", "grace_epochs")


@dataclass(frozen=True)
class SweepResult(Result):
    """The settings, best first, and their trials.

    `folder` holds `settings.csv`, `trials.csv`, `best.yaml`, the pictures and `sweep.html`. `result_grid` is Ray Tune's
    own result, of the trials that this call has run. With `promote`, `promoted` and `probes` are those of the best
    setting, trained in full.
    """

    settings: Sequence[SettingResult]
    trials: Sequence[TrialResult]
    monitor: str
    num_videos: int
    num_folds: int
    num_new: int
    seconds: float
    folder: str
    result_grid: Any = field(repr=False)
    files: dict[str, bytes] = field(repr=False, default_factory=dict)
    promoted: PretrainResult | None = None
    probes: ProbeResult | None = None

    @property
    def best(self) -> SettingResult:
        return self.settings[0]

    @property
    def num_failed(self) -> int:
        """Trials that failed."""
        return sum(trial.state == FAILED for trial in self.trials)

    def lines(self) -> list[str]:
        names = list(self.best.setting)
        widths = [max(len(_short(name)), 8) + 2 for name in names]
        head = "".join(f"{_short(name):>{width}}" for name, width in zip(names, widths, strict=True))
        head += f"{self.monitor:>13}{'95 % interval':>19}{'seeds':>7}{'epochs':>8}  "
        shown = self.settings[:_MAX_SHOWN]
        hidden = len(self.settings) - len(shown)
        tied = sum(result.is_tied for result in self.settings[1:])
        return [
            head.rstrip(),
            "-" * (len(head) + 12),
            *(_row(result, widths, is_best=result is self.best) for result in shown),
            *([f"... and {hidden} more in settings.csv"] if hidden else []),
            f"{len(self.settings)} settings, {len(self.trials)} trials, {self.num_new} of them now: "
            f"{sum(trial.seconds for trial in self.trials):.0f} s of trials, {self.seconds:.0f} s of this command",
            f"each trial was trained on {self.num_videos} training videos without one of {self.num_folds} folds, and "
            "scored on that fold",
            f"best setting: {_flags(self.best.setting)}",
            f"settings that cannot be told apart from it (=): {tied}",
            *self._failures(),
            f"tables, pictures and best.yaml: {self.folder}",
            *(["", *self.promoted.lines()] if self.promoted else []),
            *(["", *self.probes.lines()] if self.probes else []),
        ]

    def _failures(self) -> list[str]:
        reasons = [trial.reason or "" for trial in self.trials if trial.state == FAILED]
        different = list(dict.fromkeys(reasons))
        counted = [(reasons.count(reason), reason) for reason in different[:_MAX_REASONS]]
        lines = [f"{count} trial{'s' * (count > 1)} failed: {reason}" for count, reason in counted]
        if len(different) > _MAX_REASONS:
            lines.append(f"{len(different) - _MAX_REASONS} more reasons are in trials.csv")
        return lines

    def values(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "settings": [_without_nan(asdict(result)) for result in self.settings],
            "best": self.best.setting,
            "trials": len(self.trials),
            "failed": self.num_failed,
            "new": self.num_new,
            "videos": self.num_videos,
            "folds": self.num_folds,
            "folder": self.folder,
            "promoted": self.promoted.values() if self.promoted else None,
            "probes": self.probes.values() if self.probes else None,
        }

    def to_pandas(self) -> pd.DataFrame:
        """A row per setting, best first: its options, the objective with its interval, seeds, epochs and state."""
        import pandas as pd

        return pd.DataFrame(setting_rows(self.settings))

    def pictures(self) -> list[bytes]:
        return [content for name, content in self.files.items() if name.endswith(".png")]


def sweep(store: str, run: str = "sweep", *, runs: str = "runs", config: SweepConfig, console: Console) -> SweepResult:
    """Search the settings of the pretraining, ranked on videos held out of the training split.

    The same run name continues a sweep: only trials without a result are run, also if the search has grown.

    Raises
    ------
    UserError
        Before anything is started, for values that cannot be trained on this store.
    RunFailed
        If all trials failed, or if their results could not be written.
    """
    features = FeatureStore(store)
    mode = config.training.pretrain_mode
    check_modes(features, "pretrain_mode", mode)
    if config.searching.promote:
        check_modes(features, "probe_mode", config.probing.probe_mode)
    clips, _ = training_clips(features, split=config.splits.split, mode=mode)
    config = _resolved(config, features, clips)
    folder = RunFolder(runs, run)
    described = _described(config, features, clips)
    free = [*config.space, *(f"searching.{name}" for name in described["searching"] if name not in _DECISIVE)]
    folder.check_config(described, free)
    for name in ("trials", "tune"):
        check_within(join(folder.location, name), folder.location)
    num_workers = _num_workers(config)
    with folder.claimed():
        results = TrialResults(folder.location)
        with connected(config.cluster, verbose=console.verbose) as size:
            size = size.selected("worker_labels", config.cluster.worker_labels)
            sizes = trial_sizes(size, config.searching, num_workers)
            experiment = Experiment(config.tracking, folder.runs, console)
            folder.write_config(described, again=True)
            with _parent_run(experiment, folder, described, results, config, console) as parent:
                result = _run(features, len(clips), folder, config, results, sizes, size, experiment, parent, console)
                result = replace(result, files=_files(result, config, folder.name, console))
                _record(parent, result, config)
                if config.searching.promote:
                    result = _promoted(result, store, folder, config, parent, console)
    return result


def _resolved(config: SweepConfig, store: FeatureStore, clips: StoredClips) -> SweepConfig:
    """The configuration with everything decided that was left to `auto`; refused if its trials cannot be trained."""
    searching, groups = config.searching, store.groups()
    search, early = searching.search, searching.early_stopping
    if search == "auto":
        search = "random" if any(isinstance(domain, Range) for domain in config.space.values()) else "grid"
    if early == "auto":
        early = "none" if search == "grid" else "asha"
    if config.tracking.register is not None and not searching.promote:
        raise UserError("register: expected --promote with it, found a sweep that keeps no aggregator")
    if config.ingest.ingest == "stream":
        raise UserError("ingest: expected auto, memory or disk for a sweep, found stream")
    fold_of = folds_of({video_id: groups[video_id] for video_id in clips.video_ids}, searching.folds)
    rank_by = ranking_of(clips.video_ids, fold_of, store.labels(), searching.rank_by)
    sizes = Counter(fold_of.values())
    if min(sizes.values()) < (num_workers := _num_workers(config)):
        raise UserError(
            f"workers: expected at most {min(sizes.values())}, the number of videos in the smallest fold, found "
            f"{num_workers}"
        )
    set_sizes = config.space.get("sets.set_size", (config.sets.set_size,))
    check_trainable(len(clips) - max(sizes.values()), clips.num_clips, max(lowest_and_highest(set_sizes)))
    return config.with_values(
        {"searching.search": search, "searching.early_stopping": early, "searching.rank_by": rank_by}
    )


def _described(config: SweepConfig, store: FeatureStore, clips: StoredClips) -> dict[str, Any]:
    """What decides the results of the trials, by section, and the search as it is now."""
    described = config.part(PretrainConfig).to_dict()
    del described["ingest"]
    described["training"] = {name: value for name, value in described["training"].items() if name not in Training.HOW}
    for dotted, domain in config.space.items():
        section, _, name = dotted.partition(".")
        described[section][name] = domain_text(domain)
    searching = config.searching.to_dict()
    videos = digest("\n".join(clips.video_ids))
    store_facts = {"location": store.location, "training_videos": videos}
    return {**described, "probing": config.probing.to_dict(), "searching": searching, "store": store_facts}


def _num_workers(config: SweepConfig) -> int:
    low, high = config.training.num_workers or (1, 1)
    if low != high:
        raise UserError(f"workers: expected a fixed number for the trials of a sweep, found {config.training.workers}")
    return high


def _parent_run(
    experiment: Experiment,
    folder: RunFolder,
    described: Mapping[str, Any],
    results: TrialResults,
    config: SweepConfig,
    console: Console,
) -> RunRecord:
    """The MLflow run of this sweep, an earlier command's or a new one, with all trials that have a result by now."""
    from scale_ray.distributed.trial_records import record_missing

    also_in = f"{join(folder.location, 'trials')} has the results of all trials"
    before = folder.mlflow_run()
    space = {_short(name): domain_text(domain) for name, domain in config.space.items()}
    record, complete = None, []
    if before is not None:
        record = experiment.resume(before, folder.name, also_in=also_in)
        if record is None:
            console.say(f"MLflow does not have run {before} any more: continuing with a new one")
        else:
            complete = experiment.end_children(record)
    if record is None:
        record = experiment.start(folder.name, described, also_in=also_in)
        record.describe(search_description(config.space))
        folder.remember_mlflow_run(record.run_id)
    # Those of a deleted run, and those whose command was killed between the file and MLflow.
    record_missing(experiment, record, results.all(), complete)
    record.tags({f"space.{name}": text for name, text in space.items()})
    return record


def _run(
    store: FeatureStore,
    num_videos: int,
    folder: RunFolder,
    config: SweepConfig,
    results: TrialResults,
    sizes: TrialSizes,
    size: ClusterSize,
    experiment: Experiment,
    parent: RunRecord,
    console: Console,
) -> SweepResult:
    """Run the trials that are missing, and rank the settings.

    Raises
    ------
    RunFailed
        If there is nothing to rank.
    """
    from scale_ray.distributed.trial_queue import Plan
    from scale_ray.distributed.tuning import run_trials

    searching, started_s = config.searching, time.monotonic()
    seeds = [config.training.seed + number for number in range(searching.seeds)]
    settings, num_settings = _settings(folder, config, results)
    deadline_s = time.monotonic() + searching.hours * 3600 if searching.hours else None
    plan = Plan(config, settings, seeds, searching.early_stopping != "none", deadline_s)
    job = {
        "store": store.location,
        "config": config.part(PretrainConfig).to_dict(),
        "probing": config.probing.to_dict(),
        "folds": searching.folds,
        "rank_by": searching.rank_by,
        "first_seed": config.training.seed,
        "num_workers": sizes.num_workers,
        "resources": sizes.resources,
        "threads": sizes.threads,
        "use_gpu": size.gpus > 0,
    }
    num_trials = num_settings * len(seeds)
    earlier = results.done()
    console.say(
        f"{num_settings} settings x {len(seeds)} seeds, {min(sizes.slots, num_trials)} trials at a time, "
        f"ranked by {searching.rank_by}" + (f"; {len(earlier)} results are here already" if earlier else "")
    )
    grid, tried = run_trials(folder.location, job, plan, results, sizes.slots, num_trials, experiment, parent, console)
    trials: dict[str, TrialResult] = {}
    for setting, seed in itertools.product(tried, seeds):
        key = key_of(config, setting, seed)
        if (found := results.get(key)) is not None:
            # As it is written now: an earlier search may have had fewer options.
            trials[key] = replace(found, setting=setting)
    if not trials:
        raise RunFailed("expected trials within the hours of this sweep, found none that has ended")
    by_rank = ranked(list(trials.values()))
    if by_rank[0].state == FAILED:
        raise RunFailed(f"all {len(trials)} trials failed, the first with: {by_rank[0].reasons[0]}")
    return SweepResult(
        settings=by_rank,
        trials=list(trials.values()),
        monitor=next(trial.monitor for trial in trials.values() if trial.monitor),
        num_videos=num_videos,
        num_folds=searching.folds,
        num_new=len([key for key in trials if key not in earlier]),
        seconds=time.monotonic() - started_s,
        folder=folder.location,
        result_grid=grid,
    )


def _settings(folder: RunFolder, config: SweepConfig, results: TrialResults) -> tuple[Settings, int]:
    """The settings of the search, and how many there are."""
    from scale_ray.distributed.trial_queue import ListedSettings

    searching = config.searching
    if searching.search == "grid":
        grid = list(grid_settings(config.space))
        return ListedSettings(iter(grid)), len(grid)
    if searching.search == "random":
        return ListedSettings(random_settings(config.space, searching.search_seed), searching.trials), searching.trials
    from scale_ray.distributed.model_based import OptunaSettings

    begun = sorted(results.all(), key=lambda result: result.began_s)
    earlier = list({repr(result.setting): result.setting for result in begun}.values())
    return OptunaSettings(folder.location, folder.name, config, earlier), searching.trials


def _files(result: SweepResult, config: SweepConfig, title: str, console: Console) -> dict[str, bytes]:
    """The tables, pictures and the best setting, written to the folder of the sweep."""
    best = config.part(PretrainConfig).with_values(result.best.setting).to_dict()
    sections = ("sets", "aggregator", "objective", "training", "splits")
    files = {
        **sweep_tables(result.settings, result.trials),
        "best.yaml": yaml.safe_dump({name: best[name] for name in sections}, sort_keys=False).encode(),
    }
    pictures: dict[str, Callable[[], bytes]] = dict(sweep_figures(result.settings, result.trials, config.space))
    pictures["sweep.html"] = lambda: sweep_page(result.settings, result.trials, config.space, title)
    for name, draw in pictures.items():
        try:
            files[name] = draw()
        except Exception as error:  # noqa: BLE001 - whatever it is, the results stay
            console.say(f"{name} could not be drawn: {type(error).__name__}: {first_line(error)}")
    for name, content in files.items():
        with atomic_write(join(result.folder, name)) as file:
            file.write(content)
    return files


def _record(parent: RunRecord, result: SweepResult, config: SweepConfig) -> None:
    """Record the result in MLflow: a description, the best setting, the numbers of trials, tables and pictures."""
    best = result.best
    parent.describe(sweep_description(result.settings, result.trials, config.space))
    parent.tags({f"best.{_short(name)}": value for name, value in best.setting.items()})
    parent.metrics(
        {
            "best_objective": best.value,
            f"best_validation_{result.monitor}": best.value,
            "settings": len(result.settings),
            "tied_settings": sum(setting.is_tied for setting in result.settings[1:]),  # with the best one
            "trials": len(result.trials),
            "failed_trials": result.num_failed,
            "trial_seconds": sum(trial.seconds for trial in result.trials),
        }
    )
    for name, content in result.files.items():
        parent.content(content, name)


def _promoted(
    result: SweepResult, store: str, folder: RunFolder, config: SweepConfig, parent: RunRecord, console: Console
) -> SweepResult:
    """Train the best setting in full, probe it and register it, below the sweep's run in MLflow."""
    setting = result.best.setting
    full = config.part(PretrainConfig).with_values(setting)
    if config.searching.promote_epochs:
        full = full.with_values({"training.epochs": config.searching.promote_epochs})
    tracking = replace(config.tracking, register=config.tracking.register or folder.name)
    # A run of its own for each setting and number of epochs: a sweep that has grown may have another best one.
    name = f"{folder.name}-best-{digest(repr((setting, full.training.epochs)))[:6]}"
    console.say(f"promoting {setting_name(setting)}: training it as run {name} on all {result.num_videos} videos")
    trained = pretrain_below(
        parent.run_id, store, name, runs=folder.runs, config=replace(full, tracking=tracking), console=console
    )
    try:
        probes = probe_below(
            parent.run_id, store, name, runs=folder.runs, config=config.part(ProbeConfig), console=console
        )
    except UserError as error:
        console.say(f"the promoted aggregator is not probed: {first_line(error)}")
        return replace(result, promoted=trained)
    return replace(result, promoted=trained, probes=probes)


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None for NaN, which JSON does not have: of settings whose trials all failed."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in values.items()}


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _flags(setting: Setting) -> str:
    return " ".join(f"{flag_of(_short(name))} {value}" for name, value in setting.items()) or "the given options"


def _row(result: SettingResult, widths: Sequence[int], *, is_best: bool) -> str:
    values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in result.setting.values()]
    cells = "".join(f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
    if result.state == FAILED:
        return f"{cells}{'failed':>13}"
    mark = "best" if is_best else "=" if result.is_tied else result.state if result.state != "finished" else ""
    interval = f"{result.low:.3f} to {result.high:.3f}"
    return f"{cells}{result.value:>13.3f}{interval:>19}{len(result.each):>7}{result.epochs:>8}  {mark}".rstrip()
