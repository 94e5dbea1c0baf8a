"""Shared fixtures: sample videos, a store extracted from them, and the real media if they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

# Before anything starts Ray: no token file in the home folder, and heads that listen on loopback only.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# Before torch is loaded: two processes of tests share the cores, and threads that wait for each other by spinning take
# those from the threads that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

from support.command import BACKBONE, SHARED, Command, Extracted, run_command

from scale_ray.corpus.sample_videos import make_samples


# First, since xdist reads the groups in a hook of the same name.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One test process runs all tests that start a Ray, another one those of the cluster of several nodes.

    The first ones take longer than all others together: a test may have the group "cluster" to be run by that process.
    """
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.xdist_group("cluster"))
        elif item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(autouse=True)
def _few_threads(request: pytest.FixtureRequest) -> None:
    # Tests that start Ray compare with its actors, which use two.
    shares_the_cores = "PYTEST_XDIST_WORKER" in os.environ and not request.node.get_closest_marker("ray")
    torch.set_num_threads(1 if shares_the_cores else 2)


@pytest.fixture(scope="session")
def scale_ray() -> Command:
    """Run the command line in a process of its own, as a user does."""
    return run_command


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sample videos of each motion, and three files that are not videos."""
    folder = tmp_path_factory.mktemp("corpus") / "videos"
    for _ in make_samples(folder, 8):
        pass
    return folder


@pytest.fixture(scope="session")
def extracted(scale_ray: Command, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """The store of the sample videos, made by the real command."""
    store = tmp_path_factory.mktemp("features") / "store"
    return Extracted(store, scale_ray("extract", videos, "--store", store, *BACKBONE))


@pytest.fixture(scope="session")
def real_media() -> Path:
    if not (SHARED / "videos").is_dir():
        pytest.skip("the real videos and weights are not beside the project")
    return SHARED


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
