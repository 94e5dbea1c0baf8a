"""Shared fixtures: sample videos, a store extracted from them, and the real media where they are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

# Before Ray is started by anything: no token file in the home folder, no usage report.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

from scale_ray.corpus.sample_videos import make_samples

SHARED = Path(__file__).parents[2] / "shared"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def scale_ray() -> Command:
    """Run the command line in a process of its own, as a user does."""

    def run(*arguments: object, cwd: Path | None = None, timeout_s: float = 200) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-m", "scale_ray", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=timeout_s,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sample videos of each motion, and three files that are none."""
    folder = tmp_path_factory.mktemp("corpus") / "videos"
    for _ in make_samples(folder, 8):
        pass
    return folder


@dataclass(frozen=True)
class Extracted:
    store: Path
    ended: Ended


BACKBONE = ("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--input-px", "64")


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
