"""One trial of a sweep, as Ray Tune runs it: a process that trains one setting after the other.

A process reads the store once: the clips of all training videos are mapped from a file that the processes of a machine
share, and a trial takes the videos of its fold out of them. With several workers per trial, the process leads further
ones of its own, which Ray places together with it, so that no trial waits for a part of its workers.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import ray
import ray.tune
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from scale_ray.clip_sets import ResidentClips, open_source
from scale_ray.config import Ingest, PretrainConfig, Probing
from scale_ray.distributed.failures import comes_back, failing_as
from scale_ray.distributed.rendezvous import new_folder, use_loopback
from scale_ray.errors import RunFailed, UserError, first_line
from scale_ray.pretraining import Metrics, Trainer, is_monitored, run_epochs
from scale_ray.probes import FoldValidation
from scale_ray.search import blocks_of, folds_of, right_by_block
from scale_ray.store import FeatureStore, training_clips

# The name of the objective in what a trial reports.
OBJECTIVE = "objective"
# The option of a trial beside those of its setting.
SEED = "seed"
# How long a worker waits for the others of its trial.
_TIMEOUT_S = 600
# After an error that all workers of a trial meet, so long until they have.
_SETTLE_S = 5.0
# Validations of a training, at least: early stopping has nothing to judge without.
_MIN_VALIDATIONS = 5


class TrialProcess(ray.tune.Trainable):  # type: ignore[misc]  # Ray is not typed for mypy here
    """Trains the setting in `config`, with the other arguments in `job`; each step ends with a validation.

    Ray Tune uses one process for many trials.
    """

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        assert job is not None
        self._job, self._others, self._calls = job, list[Any](), list[Any]()
        self._folder: str | None = None
        with failing_as("trial"):
            self._worker = TrialWorker(job)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            with failing_as("trial"):
                return self._advance()
        except (UserError, RunFailed) as failure:
            if not self._others_are_idle():
                self._leave_others()
            if not comes_back(failure.__cause__):
                raise
            # Another attempt would end in the same way: the trial ends, and reports why.
            return {"failure": first_line(failure), OBJECTIVE: 0.0, "epoch": 0, "done": True}

    def cleanup(self) -> None:
        self._leave_others()

    def _start(self, config: Mapping[str, Any]) -> None:
        self._setting, self._is_started, self._began_s = dict(config), False, time.time()

    def _advance(self) -> dict[str, Any]:
        if not self._is_started:
            if self._job["num_workers"] > 1 and not self._others:
                self._join_others()
            self._calls = [other.start.remote(self._setting) for other in self._others]
            self._worker.start(self._setting)
            ray.get(self._calls)
            self._is_started = True
        self._calls = [other.advance.remote() for other in self._others]
        metrics = self._worker.advance()
        ray.get(self._calls)
        seconds = time.time() - self._began_s
        return {**metrics, "began_s": self._began_s, "seconds": seconds, "done": metrics["finished"]}

    def _join_others(self) -> None:
        """Start the further workers, and make all one process group; on one machine without an open port."""
        num_workers = self._job["num_workers"]
        self._others = _start_others(self._job)
        nodes = ray.get([other.node.remote() for other in self._others])
        is_local = set(nodes) == {self._worker.node()}
        # Collectives may use it until the end.
        self._folder = new_folder() if is_local else None
        address = f"file://{self._folder}/rendezvous" if is_local else self._worker.free_address()
        joined = [
            other.connect.remote(address, rank, num_workers, is_local)
            for rank, other in enumerate(self._others, start=1)
        ]
        self._worker.connect(address, 0, num_workers, is_local)
        ray.get(joined)

    def _others_are_idle(self) -> bool:
        """Whether the other workers have ended their calls, too: none died or waits in the middle of a step."""
        if not self._calls:
            return True
        done, waiting = ray.wait(self._calls, num_returns=len(self._calls), timeout=_SETTLE_S)
        for call in done:
            try:
                ray.get(call)
            except RayActorError:
                return False
            except RayTaskError:
                continue
        return not waiting

    def _leave_others(self) -> None:
        for other in self._others:
            ray.kill(other)
        if dist.is_initialized():
            dist.destroy_process_group()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._others, self._calls, self._folder = [], [], None


def _start_others(job: Mapping[str, Any]) -> list[Any]:
    """The further workers of a trial, in the places that Ray reserved for them together with this process."""
    group = ray.util.get_current_placement_group()
    worker = ray.remote(TrialWorker)
    resources = {"num_cpus": job["resources"]["CPU"], "num_gpus": job["resources"].get("GPU", 0)}
    return [
        worker.options(
            **resources, scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        ).remote(job)
        for rank in range(1, job["num_workers"])
    ]


class TrialWorker:
    """One worker of a trial: reads the clips once, and then trains one setting after the other.

    `job` holds plain values: `store`; `config` and `probing`, options by section or name; `folds`, `rank_by` and
    `first_seed`; `num_workers` of a trial, and the `resources`, `use_gpu` and `threads` of each.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["threads"])
        self._job = job
        self._config = PretrainConfig.from_dict(job["config"])
        self._device = torch.device("cuda" if job["use_gpu"] else "cpu")
        store = FeatureStore(job["store"])
        stored, _ = training_clips(store, split=self._config.splits.split, mode=self._config.training.pretrain_mode)
        self._labels, self._groups = store.labels(), store.groups()
        mapped = open_source(stored, _mapped(self._config.ingest), torch.device("cpu"), groups=self._groups)
        assert isinstance(mapped, ResidentClips)
        self._clips = mapped
        fits = self._device.type == "cuda" and _fits(stored.num_bytes, self._device, self._config.ingest, job)
        self._source = mapped.on(self._device, copied=fits)
        self._fold_of = folds_of({i: self._groups[i] for i in mapped.video_ids}, job["folds"])
        self._validations: dict[int, FoldValidation] = {}
        self._epochs: Iterator[Metrics] = iter(())

    def start(self, setting: Mapping[str, Any]) -> None:
        """Begin to train a setting from its first epoch."""
        seed = setting[SEED]
        values = {name: value for name, value in setting.items() if name != SEED}
        config = self._config.with_values({**values, "training.seed": seed})
        # At least some validations, however short the training is.
        every = min(config.training.monitor_epochs or config.training.epochs, config.training.epochs)
        every = max(min(every, config.training.epochs // _MIN_VALIDATIONS), 1)
        config = replace(config, training=replace(config.training, monitor_epochs=every))
        fold = fold_of_seed(seed, self._job)
        held_out = torch.tensor([self._fold_of[video_id] == fold for video_id in self._clips.video_ids])
        if fold not in self._validations:
            self._validations[fold] = FoldValidation(
                self._clips,
                held_out,
                self._labels,
                self._groups,
                Probing.from_dict(self._job["probing"]),
                self._job["rank_by"],
            )
        self._validation = self._validations[fold]
        self._trainer = Trainer(
            self._source.subset((~held_out).nonzero()[:, 0]),
            config,
            device=self._device,
            held_out=self._source.subset(held_out.nonzero()[:, 0]),
        )
        self._epochs, self._trained_s = run_epochs(self._trainer), 0.0

    def advance(self) -> dict[str, Any]:
        """Train up to the next validation; the metrics of the last epoch, and of the first worker also the score."""
        began_s = time.monotonic()
        metrics: dict[str, Any] = {}
        for metrics in self._epochs:  # noqa: B007 - the last one is returned
            if is_monitored(self._trainer.config.training, self._trainer.epoch):
                break
        self._trained_s += time.monotonic() - began_s
        metrics |= {"finished": self._trainer.finished, "train_seconds": self._trained_s}
        if dist.is_initialized() and dist.get_rank() > 0:
            return {}
        right = self._validation(self._trainer.model)
        blocks = right_by_block(right.tolist(), blocks_of(self._validation.groups))
        return {
            **metrics,
            OBJECTIVE: float(right.float().mean()),
            "monitor": self._validation.monitor,
            "blocks": blocks,
        }

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def free_address(self) -> str:
        """An address on this machine at which the workers of several machines can meet."""
        return f"tcp://{ray.util.get_node_ip_address()}:{_free_port()}"

    def connect(self, address: str, rank: int, num_workers: int, is_local: bool) -> None:
        """Join the workers of this trial."""
        if is_local:
            use_loopback()
        # NCCL does not let two workers share a GPU.
        shared = self._job["resources"].get("GPU", 0) < 1
        dist.init_process_group(
            "gloo" if shared else "nccl",
            init_method=address,
            rank=rank,
            world_size=num_workers,
            timeout=timedelta(seconds=_TIMEOUT_S),
        )


def fold_of_seed(seed: int, job: Mapping[str, Any]) -> int:
    """The fold that the trials with a seed are validated on."""
    return int((seed - job["first_seed"]) % job["folds"])


def _mapped(ingest: Ingest) -> Ingest:
    """Mapped files, unless asked for otherwise; with a local Ray in its folder, which is removed with it."""
    cache = ingest.cache or os.environ.get("RAY_TMPDIR")
    return replace(ingest, ingest="disk" if ingest.ingest == "auto" else ingest.ingest, cache=cache)


def _fits(num_bytes: int, device: torch.device, ingest: Ingest, job: Mapping[str, Any]) -> bool:
    """Whether the features fit into this process's part of a GPU."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    part = min(job["resources"]["GPU"], 1.0)
    return num_bytes <= ingest.ingest_share * min(free_bytes, total_bytes * part)


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])
