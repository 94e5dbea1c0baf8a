"""Options of where a stage runs and where it is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.labels import SELECTOR
from scale_ray.config.option import Options, at_least, option
from scale_ray.config.stage import StageConfig


@dataclass(frozen=True)
class Tracking(Options):
    """Where MLflow records the runs."""

    section = "tracking"

    tracking_uri: str | None = option(None, "MLflow's tracking URI; RUNS/mlflow.db by default.", main=True)
    experiment: str = option("scale-ray", "Name of the MLflow experiment.")
    register: str | None = option(None, "Register the aggregator in MLflow as a new version of the model of this name.")


@dataclass(frozen=True)
class Cluster(Options):
    """The Ray cluster that the work runs on."""

    section = "cluster"

    address: str | None = option(
        None, "Address of a Ray cluster, or http://HEAD:8265 to run there as a job; otherwise a local Ray.", main=True
    )
    cpus: int = option(0, "CPUs of the local Ray; 0: all.", check=at_least(0), main=True)
    worker_labels: str | None = option(
        None,
        "Ray labels of the nodes for training workers and trials, as KEY=VALUE,...; by default all nodes.",
        check=SELECTOR,
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(StageConfig):
    """The options of `demo` beside its own few."""

    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()


@dataclass(frozen=True, kw_only=True)
class UiConfig(StageConfig):
    """The options of `ui`."""

    tracking: Tracking = Tracking()
