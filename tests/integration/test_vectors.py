"""Vectors of videos: from a store and from files, per clip, in repeated runs, and as a model that MLflow serves."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command, Extracted
from support.servers import free_port, serving
from support.stores import make_store, read_clips

from scale_ray.aggregator import normalised_positions
from scale_ray.aggregator.model import Aggregator
from scale_ray.aggregator.representation import clip_representations, set_tokens, tokens_of_clips
from scale_ray.config import AggregatorOptions, Representing
from scale_ray.console import Progress
from scale_ray.embedding.neighbours import find_neighbours
from scale_ray.embedding.vector_store import VectorStore, embed_store, fingerprint_of_vectors
from scale_ray.embedding.video_model import VideoModel, clip_vectors
from scale_ray.errors import UserError
from scale_ray.store.feature_store import FeatureStore

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def checkpoint(extracted: Extracted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained aggregator for the store of the sample videos; its quality does not matter here."""
    folder = tmp_path_factory.mktemp("checkpoint") / "aggregator"
    store = FeatureStore(str(extracted.store))
    torch.manual_seed(0)
    width = store.feature_width()
    assert width is not None
    Aggregator(width, AggregatorOptions(width=32, layers=1), store.origin).save(str(folder))
    return folder


@pytest.fixture(scope="module")
def embedded(scale_ray: Command, extracted: Extracted, checkpoint: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "out"
    ended = scale_ray(
        "embed", "--store", extracted.store, "--checkpoint", checkpoint, "--out", out, "--per-clip", "--json"
    )
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["num_done"] == 32
    return out


def test_a_store_becomes_one_vector_a_video(embedded: Path, extracted: Extracted, checkpoint: Path):
    table = pd.read_parquet(embedded / "vectors").set_index("video_id")
    store = FeatureStore(str(extracted.store))
    assert sorted(table.index) == sorted(store.labels().keys() & store.stored_ids("train") | store.stored_ids("eval"))
    assert table["label"].to_dict() == {i: label for i, label in store.labels().items() if i in table.index}
    assert table["split"].to_dict() == {i: subset for i, subset in store.splits().items() if i in table.index}
    assert set(zip(table["mode"], table["split"], strict=True)) == {("train", "train"), ("eval", "test")}
    aggregator = Aggregator.load(str(checkpoint))
    clips = read_clips(store, "train")
    features = torch.from_numpy(clips.features)
    tokens = set_tokens(aggregator, features, normalised_positions(torch.from_numpy(clips.positions)))
    expected = clip_representations(features, tokens).mean(1)
    np.testing.assert_allclose(np.stack(table.loc[clips.video_ids, "vector"].tolist()), expected, atol=1e-5)


def test_vectors_with_other_labels_than_are_known_now_are_refused(tmp_path: Path):
    features = {f"v{n}": np.random.default_rng(n).normal(size=(4, 6)) for n in range(4)}
    sides = ["train", "train", "test", "test"]
    aggregator = Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()
    out = str(tmp_path / "vectors")

    def embed_labelled(name: str, labels: list[str]) -> int:
        store = make_store(tmp_path / name, features, sides=sides, label=labels)
        fingerprint = fingerprint_of_vectors(aggregator, Representing(), per_clip=False)
        vectors = VectorStore.create(out, fingerprint)
        vectors.prepare(aggregator, Representing(), per_clip=False, split="default")
        with Progress("embed", 4, "videos", quiet=True) as progress:
            return embed_store(store, vectors, progress)

    assert embed_labelled("first", ["a", "b", "a", "b"]) == 4
    assert embed_labelled("same", ["a", "b", "a", "b"]) == 4
    with pytest.raises(UserError, match="found 1 that differ, such as that of 'v0'; give another --out"):
        embed_labelled("corrected", ["b", "b", "a", "b"])
    assert VectorStore(out).labels()["v0"] == "a", "refused before anything is changed"


def test_the_vectors_of_the_clips_have_the_video_s_as_their_mean(embedded: Path):
    videos = pd.read_parquet(embedded / "vectors").set_index("video_id")["vector"]
    clips = pd.read_parquet(embedded / "clips")
    assert (clips["end_s"] > clips["start_s"]).all()
    for video_id, rows in clips.groupby("video_id"):
        assert sorted(rows["clip"]) == list(range(len(rows)))
        np.testing.assert_allclose(np.stack(rows["vector"].tolist()).mean(0), videos[video_id], atol=1e-5)


def test_what_is_there_is_not_done_again_and_another_aggregator_is_refused(
    scale_ray: Command, embedded: Path, extracted: Extracted, checkpoint: Path, tmp_path: Path
):
    parts = {path: path.stat().st_mtime_ns for path in embedded.glob("*/part-*")}
    command = ("embed", "--store", extracted.store, "--out", embedded, "--per-clip")
    assert scale_ray(*command, "--checkpoint", checkpoint).code == 0
    assert {path: path.stat().st_mtime_ns for path in embedded.glob("*/part-*")} == parts
    lost = min(path for path in parts if path.parent.name == "vectors")
    content = lost.read_bytes()
    lost.unlink()
    assert scale_ray(*command, "--checkpoint", checkpoint).code == 0
    assert lost.read_bytes() == content
    other = Aggregator.load(str(checkpoint))
    torch.nn.init.normal_(other.embed.weight)
    other.save(str(tmp_path / "other"))
    refused = scale_ray(*command, "--checkpoint", tmp_path / "other")
    assert refused.code == 2
    assert "expected the vectors of one aggregator, backbone and sampling, found another: aggregator" in refused.err


def test_videos_straight_through_give_the_vectors_of_the_store(
    scale_ray: Command, videos: Path, extracted: Extracted, checkpoint: Path, embedded: Path, tmp_path: Path
):
    """For test videos, whose eval clips are in the store; a file that is not a video becomes an entry of the ledger."""
    store = FeatureStore(str(extracted.store))
    test = sorted(store.stored_ids("eval"))[:3]
    manifest = tmp_path / "new.csv"
    lines = [f"{video_id},{videos}/{video_id}\n" for video_id in [*test, "approach/notes.txt"]]
    manifest.write_text("video_id,path\n" + "".join(lines))
    ended = scale_ray("embed", manifest, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert ended.code == 3, ended.err
    assert "3 done + 1 failed + 0 skipped = 4 videos" in ended.out
    ours = pd.read_parquet(tmp_path / "out" / "vectors").set_index("video_id")["vector"]
    theirs = pd.read_parquet(embedded / "vectors").set_index("video_id")["vector"]
    assert sorted(ours.index) == test
    for video_id in test:
        np.testing.assert_allclose(ours[video_id], theirs[video_id], atol=2e-3)
    assert not list((tmp_path / "out").glob("features*")), "no features are stored"
    again = scale_ray("embed", manifest, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert "everything was done already" in again.out


def test_neighbours_of_a_file_and_of_a_stored_video(
    scale_ray: Command, videos: Path, extracted: Extracted, checkpoint: Path, tmp_path: Path
):
    store = FeatureStore(str(extracted.store))
    video_id = min(store.stored_ids("eval"))
    common = ("--store", extracted.store, "--checkpoint", checkpoint, "--count", 4, "--json")
    neighbours = {}
    for query in (video_id, videos / video_id):
        ended = scale_ray("neighbours", query, *common, "--picture", tmp_path / "sheet.png")
        assert ended.code == 0, ended.err
        neighbours[str(query)] = json.loads(ended.out)["neighbours"]
        assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    by_id, by_file = neighbours.values()
    assert len(by_id) == 4
    assert [near["video_id"] for near in by_id] == [near["video_id"] for near in by_file]
    assert video_id not in [near["video_id"] for near in by_id]
    assert [near["cosine"] for near in by_id] == sorted((near["cosine"] for near in by_id), reverse=True)
    copy = tmp_path / "renamed.mp4"
    shutil.copy(videos / video_id, copy)
    [nearest, *_] = find_neighbours(str(copy), store, Aggregator.load(str(checkpoint)), 1, Representing()).neighbours
    assert nearest.video_id == video_id, "a copy is nearest to its original"
    assert nearest.cosine > 0.99


def test_a_query_that_is_nothing_is_refused(extracted: Extracted, checkpoint: Path):
    store, aggregator = FeatureStore(str(extracted.store)), Aggregator.load(str(checkpoint))
    with pytest.raises(UserError, match="expected a video file or the id of a stored video, found"):
        find_neighbours("nothing.mp4", store, aggregator, 3, Representing())


@pytest.fixture(scope="module")
def model(scale_ray: Command, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    ended = scale_ray(
        "export",
        "--checkpoint",
        checkpoint,
        "--out",
        folder / "model",
        "--runs",
        folder / "runs",
        "--register",
        "whole",
    )
    assert ended.code == 0, ended.err
    client = mlflow.MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    [version] = client.search_model_versions("name='whole'")
    assert version.source.endswith("/artifacts/model")
    return folder / "model"


def test_mlflow_loads_the_whole_and_a_bad_path_is_an_error_of_its_row(
    model: Path, videos: Path, extracted: Extracted, embedded: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SCALE_RAY_SERVED_VIDEOS", str(videos))
    video_id = min(FeatureStore(str(extracted.store)).stored_ids("eval"))
    loaded = mlflow.pyfunc.load_model(str(model))
    assert loaded.metadata.signature is not None
    assert [column.name for column in loaded.metadata.get_output_schema()] == ["path", "vector", "error"]
    paths = [str(videos / path) for path in (video_id, "nowhere.mp4", "approach/notes.txt")]
    table = loaded.predict(paths)
    assert table["path"].tolist() == paths
    theirs = pd.read_parquet(embedded / "vectors").set_index("video_id")["vector"]
    np.testing.assert_allclose(table["vector"][0], theirs[video_id], atol=2e-3)
    assert table["vector"].isna().tolist() == [False, True, True]
    assert "open: not a readable video" in table["error"][1]
    assert "open: not a readable video" in table["error"][2]
    assert not list(model.rglob("*.pkl")), "nothing in it is executed when it is loaded"


def test_weights_that_were_changed_are_refused(model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    data = tmp_path / "data"
    shutil.copytree(model / "data" / "scale_ray_model", data)
    VideoModel.load(str(data))
    tensors = load_file(data / "backbone.safetensors")
    name = next(name for name in tensors if name.endswith("weight"))
    save_file({**tensors, name: tensors[name] + 1}, data / "backbone.safetensors")
    with pytest.raises(UserError, match="expected tensors with the hash"):
        VideoModel.load(str(data))


def test_mlflow_serves_the_model_on_loopback(
    model: Path, videos: Path, extracted: Extracted, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SCALE_RAY_SERVED_VIDEOS", str(videos))
    video_id = min(FeatureStore(str(extracted.store)).stored_ids("eval"))
    port = free_port()
    arguments = ("models", "serve", "-m", str(model), "--env-manager", "local", "--host", "127.0.0.1")
    with serving("mlflow", *arguments, f"--port={port}", port=port, within_s=90):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": [str(videos / video_id), str(videos / "nowhere.mp4"), "/etc/hostname"]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=90) as answer:
            good, bad, outside = json.loads(answer.read())["predictions"]
    assert len(good["vector"]) == 1024 + 32
    assert good["error"] is None
    assert bad["vector"] is None
    assert "not a readable video" in bad["error"]
    assert outside["error"] == f"path: expected a video below {videos}"


def test_a_long_video_is_one_set_or_an_ensemble_of_sets():
    torch.manual_seed(0)
    aggregator = Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()
    features, positions = torch.randn(2, 40, 6), torch.rand(2, 40, 7)
    whole = tokens_of_clips(aggregator, features, positions)
    assert torch.equal(whole[:, 0], set_tokens(aggregator, features, positions))
    assert torch.equal(whole[:, 0], whole[:, 39])
    ensemble = tokens_of_clips(aggregator, features, positions, Representing(ensemble=16))
    for first in range(3):  # 40 clips in three sets of 14, 13 and 13
        token = set_tokens(aggregator, features[:, first::3], positions[:, first::3])
        for clip in range(first, 40, 3):
            torch.testing.assert_close(ensemble[:, clip], token)
    assert not torch.allclose(ensemble[:, 0], ensemble[:, 1])
    assert torch.equal(tokens_of_clips(aggregator, features, positions, Representing(ensemble=40)), whole)


def test_an_aggregator_without_a_known_backbone_asks_for_its_weights(tmp_path: Path):
    store = make_store(tmp_path / "s", {"v": np.zeros((4, 6))}, sides=["train"])
    aggregator = Aggregator(6, AggregatorOptions(width=32), store.origin)
    with pytest.raises(UserError, match="expected --weights-at default or FILE, since the aggregator does not record"):
        VideoModel.from_aggregator(aggregator)
    with pytest.raises(UserError, match="expected an aggregator that records its backbone"):
        VideoModel.from_aggregator(Aggregator(6, AggregatorOptions(width=32)))


def test_vectors_are_no_features_and_features_no_vectors(tmp_path: Path):
    store = make_store(tmp_path / "s", {"v": np.zeros((4, 6))}, sides=["train"])
    with pytest.raises(UserError, match="expected a folder of vectors or an empty folder, found other files"):
        VectorStore.create(store.location, {})
    VectorStore.create(str(tmp_path / "v"), {"aggregator": "a"})
    with pytest.raises(UserError, match=r"expected a feature store \(made by `scale-ray extract`\), found none"):
        FeatureStore(str(tmp_path / "v"))


def test_features_are_rounded_as_in_a_store():
    torch.manual_seed(0)
    aggregator = Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()
    rng = np.random.default_rng(0)
    features, positions = rng.normal(size=(2, 4, 6)), rng.random((2, 4, 7), np.float32)
    np.testing.assert_array_equal(
        clip_vectors(aggregator, features, positions, 0),
        clip_vectors(aggregator, features.astype(np.float16), positions, 0),
    )
