"""What goes wrong in another process is one line on standard error, and nothing on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.stores import read_clips

from scale_ray.cli.main import main
from scale_ray.config import Cluster
from scale_ray.corpus.sample_videos import make_samples
from scale_ray.distributed.cluster import connected
from scale_ray.store.feature_store import FeatureStore

# Ray, in this process, warns about its own settings.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(500), pytest.mark.filterwarnings("ignore")]

# A backbone that works in the process of the command, and fails elsewhere as the file `fails` says.
BACKBONE = """
import os
from pathlib import Path

import torch

FAILS = "" if os.environ["THE_DRIVER"] == str(os.getpid()) else Path(__file__).with_name("fails").read_text()
if FAILS == "import":
    raise ModuleNotFoundError("No module named 'codec_x'")


class Net(torch.nn.Module):
    input_px = 32

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 8)

    def forward(self, clips):
        if FAILS == "call":
            raise ValueError("shapes\\ndo not match")
        if FAILS == "memory" and len(clips) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.layer(clips.mean((2, 3, 4)))


def net():
    return Net()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with videos and the backbone; all commands share one Ray."""
    folder = tmp_path_factory.mktemp("workers")
    for _ in make_samples(folder / "videos", 2):
        pass
    (folder / "failing_net.py").write_text(BACKBONE)
    os.environ["THE_DRIVER"] = str(os.getpid())
    sys.path.append(str(folder))
    try:
        with connected(Cluster(cpus=2)):
            yield folder
    finally:
        sys.path.remove(str(folder))
        del os.environ["THE_DRIVER"]


def extract(folder: Path, fails: str, capfd) -> tuple[int, list[str], list[str]]:
    """The exit code, and the lines on standard output and on standard error."""
    (folder / "fails").write_text(fails)
    store = folder / (fails or "good")
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["extract", str(folder / "videos"), "--store", str(store), "--backbone", "failing_net:net", "--cpus", "2"])
    printed = capfd.readouterr()
    return ended.value.code, printed.out.splitlines(), printed.err.splitlines()


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        ("import", "No module named 'codec_x'"),
        ("call", "ValueError: shapes"),
    ],
)
def test_a_failing_actor_is_one_line(folder, capfd, fails, expected):
    code, out, err = extract(folder, fails, capfd)
    assert code == 1
    assert out == []
    assert err[-1].startswith("Error: backbone on node ")
    assert expected in err[-1]
    assert len(err) <= 4, err
    assert not any("Traceback" in line or "(pid=" in line for line in err)


def test_a_batch_that_memory_does_not_hold_is_halved_and_the_summary_says_so(folder, capfd):
    assert extract(folder, "", capfd)[0] == 3
    code, out, _ = extract(folder, "memory", capfd)
    assert code == 3, "three files are no videos"
    assert "batch_clips was reduced to 4: the device's memory did not hold 16" in out
    whole, halved = (read_clips(FeatureStore(str(folder / name)), "train") for name in ("good", "memory"))
    assert whole.video_ids == halved.video_ids
    np.testing.assert_allclose(whole.features, halved.features, rtol=2e-3, atol=2e-3)
