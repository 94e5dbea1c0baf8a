"""Where the work of an extraction runs, on a simulated cluster: a head without CPUs and nodes that differ."""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray.cluster_utils
from support.stores import read_clips

from scale_ray.backbones import custom
from scale_ray.cli.main import main
from scale_ray.config import Cluster, Sampling
from scale_ray.corpus.sample_videos import make_samples
from scale_ray.decoding import video_bytes
from scale_ray.distributed.cluster import connected
from scale_ray.files.module_files import files_of_module
from scale_ray.store.feature_store import FeatureStore

# Ray, in this process, warns about its own settings.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

# A backbone in a folder of the command's machine, with a module beside it; it notes the node that it runs on.
BACKBONE = """
import ray
import torch
from beside_the_net import INPUT_PX


class Net(torch.nn.Module):
    input_px = INPUT_PX

    def forward(self, clips):
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
            with open({notes!r}, "a") as notes:
                print(ray.get_runtime_context().get_node_id(), file=notes)
        return clips.mean((3, 4)).flatten(1)


def net():
    return Net()
"""
INPUT_PX = 64
FRAMES = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with videos and a backbone; this process is connected to the head of three nodes."""
    folder = tmp_path_factory.mktemp("placement")
    for _ in make_samples(folder / "videos", 2):
        pass
    (folder / "code").mkdir()
    (folder / "code" / "net_of_mine.py").write_text(BACKBONE.format(notes=str(folder / "notes")))
    (folder / "code" / "beside_the_net.py").write_text(f"INPUT_PX = {INPUT_PX}\n")
    with pytest.MonkeyPatch.context() as changes:
        changes.setenv("RAY_metrics_report_interval_ms", "500")
        changes.setattr(sys, "path", [*sys.path, str(folder / "code")])
        # As on a machine that does not have the folder.
        changes.setattr(custom, "files_of_module", lambda name: replace(files_of_module(name), folder="/not/here"))
        simulated = ray.cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        try:
            simulated.add_node(num_cpus=2, labels={"tier": "cpu"})
            simulated.add_node(num_cpus=1, num_gpus=1, labels={"tier": "gpu"})
            with connected(Cluster(address=simulated.address)):
                yield folder
        finally:
            simulated.shutdown()


def extract(folder: Path, store: str, *options: str) -> int:
    """The exit code of an extraction of all videos; 3 is that of one with the three files that are no videos."""
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("extract", str(folder / "videos"), "--store", str(folder / store), "--backbone", "net_of_mine:net"),
                *("--frames", str(FRAMES), "--mode", "train", *options),
            ]
        )
    return ended.value.code


def nodes() -> dict[str, str]:
    """The ids of the nodes, by tier; `head` is the node of the driver."""
    return {node["Labels"].get("tier", "head"): node["NodeID"] for node in ray.nodes() if node["Alive"]}


def received_bytes() -> dict[str, int]:
    """Bytes that each node has received from others, by tier."""
    time.sleep(2)
    by_id = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
        counted = [line for line in lines if line.startswith("ray_object_manager_bytes{") and 'Type="Received"' in line]
        by_id[node["NodeID"]] = int(sum(float(line.rpartition(" ")[2]) for line in counted))
    return {tier: by_id[node_id] for tier, node_id in nodes().items()}


def test_stages_run_on_the_nodes_with_their_labels_and_pixels_travel_once(cluster: Path):
    before = received_bytes()
    assert extract(cluster, "apart", "--decoder-labels", "tier=cpu", "--actor-labels", "tier=!cpu") == 3
    received = {tier: count - before[tier] for tier, count in received_bytes().items()}
    assert set((cluster / "notes").read_text().split()) == {nodes()["gpu"]}
    num_videos = len(FeatureStore(str(cluster / "apart")).stored_ids("train"))
    pixels = num_videos * video_bytes("train", Sampling(frames=FRAMES), [INPUT_PX])
    assert pixels <= received["gpu"] < 1.2 * pixels
    assert received["cpu"] < 0.1 * pixels
    assert received["head"] < 0.1 * pixels


def test_without_labels_the_results_are_the_same(cluster: Path):
    assert extract(cluster, "anywhere") == 3
    apart, anywhere = (read_clips(FeatureStore(str(cluster / name)), "train") for name in ("apart", "anywhere"))
    assert apart.video_ids == anywhere.video_ids
    assert (apart.features == anywhere.features).all()


def test_a_selector_that_no_node_meets_ends_the_command_at_once(cluster: Path, capfd: pytest.CaptureFixture[str]):
    began_s = time.monotonic()
    assert extract(cluster, "nowhere", "--actor-labels", "tier=tpu") == 2
    assert time.monotonic() - began_s < 10
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.endswith(
        "actor_labels: expected a node with CPUs or GPUs and the labels tier=tpu, found the labels tier=cpu, tier=gpu"
    )


def test_a_node_without_a_package_of_the_backbone_is_named_with_it(
    cluster: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The package is on the path of the command, in another folder than the backbone."""
    (cluster / "installed").mkdir()
    (cluster / "installed" / "codec_of_others.py").write_text("")
    code = "import codec_of_others\nfrom net_of_mine import Net\n\n\nclass Needing(Net):\n    pass\n\n\n"
    code += "def net():\n    return Needing()\n"
    (cluster / "code" / "needing_net.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path, str(cluster / "installed")])
    assert extract(cluster, "lacking", "--backbone", "needing_net:net") in (1, 2)
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith("Error: backbone on node ")
    assert message.endswith("No module named 'codec_of_others'")


@pytest.mark.parametrize(("stage", "actor"), [("pretrain", "RayTrainWorker"), ("sweep", "Trainable")])
def test_a_training_runs_on_the_nodes_with_its_labels(cluster: Path, stage: str, actor: str):
    options = ("--store", str(cluster / "anywhere"), "--run", stage, "--runs", str(cluster / "runs"), "--epochs", "1")
    small = ("--batch", "4", "--set-size", "4", "--width", "32", "--layers", "1")
    with pytest.raises(SystemExit) as refused:
        main([stage, *options, *small, "--worker-labels", "tier=tpu"])
    assert refused.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main([stage, *options, *small, "--worker-labels", "tier=cpu"])
    assert ended.value.code == 0
    actors = ray._private.state.actors().values()
    places = {found["ActorClassName"]: found["Address"]["NodeID"] for found in actors}
    assert {place for name, place in places.items() if actor in name} == {nodes()["cpu"]}, places
