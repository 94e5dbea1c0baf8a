"""A head without CPUs and three nodes, shared by all tests of this folder; commands reach them over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import SimulatedCluster
from support.command import Ended
from support.jobs import EXTRACT, MODULES, PRETRAIN, Jobs

from scale_ray.corpus.sample_videos import make_samples


@pytest.fixture(scope="session")
def cluster() -> Iterator[SimulatedCluster]:
    nodes = SimulatedCluster(3)
    try:
        yield nodes
    finally:
        nodes.close()


@pytest.fixture(scope="session")
def jobs(cluster: SimulatedCluster) -> Jobs:
    return Jobs(cluster)


@pytest.fixture(scope="session")
def few_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sample videos of each of four motions, and three files that are no videos."""
    folder = tmp_path_factory.mktemp("cluster") / "videos"
    for _ in make_samples(folder, 10):
        pass
    return folder


@pytest.fixture(scope="session")
def extraction(jobs: Jobs, few_videos: Path) -> Ended:
    """An undisturbed extraction."""
    store = few_videos.parent / "store"
    return jobs.run(few_videos.parent, "extract", few_videos, "--store", store, *EXTRACT, module_folder=MODULES)


@pytest.fixture(scope="session")
def extracted(extraction: Ended, few_videos: Path) -> Path:
    """Its store."""
    return few_videos.parent / "store"


@pytest.fixture(scope="session")
def trained(jobs: Jobs, extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of an undisturbed pretraining on two workers, called `run`."""
    runs = tmp_path_factory.mktemp("trained")
    jobs.run(runs, "pretrain", "--store", extracted, "--runs", runs, "--run", "run", *PRETRAIN)
    return runs
