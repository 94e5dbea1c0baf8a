"""Options of where it runs and what keeps the record."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.option import Options, at_least, option
from scale_ray.config.stage import StageConfig


@dataclass(frozen=True)
class Tracking(Options):
    """Where MLflow keeps its record."""

    section = "tracking"

    tracking_uri: str | None = option(None, "MLflow's tracking URI; RUNS/mlflow.db by default.", main=True)
    experiment: str = option("scale-ray", "MLflow experiment.")
    register: str | None = option(None, "Name under which the aggregator becomes a version of a model in MLflow.")


@dataclass(frozen=True)
class Cluster(Options):
    """The Ray cluster that the work runs on."""

    section = "cluster"

    address: str | None = option(None, "Address of a running Ray cluster; else a Ray of our own.", main=True)
    cpus: int = option(0, "CPUs of a Ray of our own; 0: all.", check=at_least(0), main=True)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(StageConfig):
    """The options of `demo` beside its own few."""

    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()


@dataclass(frozen=True, kw_only=True)
class UiConfig(StageConfig):
    """The options of `ui`."""

    tracking: Tracking = Tracking()
