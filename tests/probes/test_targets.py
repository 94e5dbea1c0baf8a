import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.stores import make_store

from scale_ray.aggregator.model import Aggregator
from scale_ray.config import AggregatorOptions, Ingest, ProbeConfig, Probing, Splits
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.probes.evaluation import probe_table
from scale_ray.probes.targets import read_targets
from scale_ray.stages.probe import probe

IDS = [f"v{n:02d}" for n in range(24)]
SUBSETS = ["test" if n % 3 == 0 else "train" for n in range(24)]
FEATURES = {video_id: np.random.default_rng(n).normal(size=(4, 6)) for n, video_id in enumerate(IDS)}
QUICK = Probing(
    probes=("all",), probe_min_steps=5, deep_min_steps=2, probe_set_size=2, probe_epochs=1, deep_epochs=1, resamples=20,
    learning_rates=(1e-3,), weight_decays=(0.0,), low_shot=(0.5, 1)
)  # fmt: skip


def test_the_first_known_of_label_labels_and_target_counts(tmp_path):
    labels = [["a"], ["a", "b"], [], None] * 6
    store = make_store(tmp_path / "s", FEATURES, sides=SUBSETS, labels=labels, target=[1.5] * 23 + [None])
    targets = read_targets(store)
    assert (targets.kind, targets.names) == ("multilabel", ["a", "b"])
    assert targets.tensor(["v00", "v01", "v02"]).tolist() == [[1, 0], [1, 1], [0, 0]]
    assert "v03" not in targets.values
    with pytest.raises(UserError, match="numbers of at least 2 values in column target, found 1"):
        read_targets(store, "target")


def test_a_column_of_the_manifest_is_a_target_too(tmp_path):
    store = make_store(
        tmp_path / "s",
        FEATURES,
        sides=SUBSETS,
        director=[f"director {n % 3}" for n in range(24)],
        like_ratio=np.linspace(0, 1, 24),
        tags=[["x", "y"][: n % 3] for n in range(24)],
    )
    assert read_targets(store, "director").kind == "classes"
    assert read_targets(store, "tags").kind == "multilabel"
    numbers = read_targets(store, "like_ratio")
    assert numbers.kind == "numbers"
    assert numbers.tensor(["v23"]).tolist() == [[1.0]]
    with pytest.raises(UserError, match=r"expected a column of video_id, .*found 'views'"):
        read_targets(store, "views")
    with pytest.raises(UserError, match="expected labelled videos of at least 2 classes in column label, found 0"):
        read_targets(store)


def test_what_is_no_target_is_left_out(tmp_path):
    store = make_store(
        tmp_path / "s",
        FEATURES,
        sides=SUBSETS,
        director=["", "one", "two"] * 8,
        ratio=[float("nan"), 1.0, 2.0] * 8,
        tags=pa.array([None, ["x", None], ["y"]] * 8, pa.large_list(pa.string())),
    )
    for column, names in (("director", ["one", "two"]), ("ratio", ["ratio"]), ("tags", ["x", "y"])):
        targets = read_targets(store, column)
        assert targets.names == names
        assert sorted(targets.values) == [i for n, i in enumerate(IDS) if n % 3]
    assert read_targets(store, "tags").values["v01"] == ["x"]


def test_a_gain_of_errors_is_how_much_lower_they_are(tmp_path):
    store = make_store(tmp_path / "s", FEATURES, sides=SUBSETS, target=np.arange(24.0))
    aggregator = Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()
    table, _ = probe_table(store, [aggregator], Probing(**{**QUICK.to_dict(), "probes": ("knn", "linear")}))
    alone, trained = (table.rows[index].metrics["linear_mse"] for index in (1, 3))
    assert table.gains["linear_mse"].value == pytest.approx(alone.value - trained.value)


def test_probes_that_do_not_apply_are_told(tmp_path):
    store = make_store(tmp_path / "s", FEATURES, sides=SUBSETS, target=np.arange(24.0))
    aggregator = Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()
    with pytest.raises(UserError, match="probes: expected one that applies to numbers, found clustering"):
        probe_table(store, [aggregator], Probing(probes=("clustering",)))


@pytest.mark.parametrize(
    ("column", "metrics"),
    [
        ("labels", ["knn_map", "linear_map", "mlp_map", "attentive_map", "lowshot_0.5_map", "retrieval_map"]),
        ("target", ["knn_mse", "linear_mse", "mlp_mse", "attentive_mse", "lowshot_0.5_mse"]),
    ],
)
def test_several_labels_and_numbers_go_through_the_suite(tmp_path, column, metrics):
    labels = [["a", "b", "c"][: 1 + n % 3] for n in range(24)]
    store = make_store(tmp_path / "s", FEATURES, sides=SUBSETS, labels=labels, target=np.arange(24.0))
    probing = Probing(**{**QUICK.to_dict(), "target": column})
    table, figures = probe_table(store, [Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()], probing)
    backbone = table.rows[1].metrics
    assert [name for name in metrics if name not in backbone] == []
    assert not any(name.startswith("clustering") or "per_class" in name for name in backbone)
    assert all(np.isfinite([estimate.value, estimate.low, estimate.high]).all() for estimate in backbone.values())
    assert {"multilabel": "labels; equal scores: mAP", "numbers": "numbers; always the training mean: MSE"}[
        table.kind
    ] in " ".join(table.footnotes())
    assert figures.predictions == {}


@pytest.mark.slow
def test_every_official_split_is_reported_apart_and_averaged(tmp_path):
    splits = [{"1": "test" if n % 3 == 0 else "train", "2": "test" if n % 3 == 1 else "train"} for n in range(24)]
    store = make_store(tmp_path / "s", FEATURES, sides=splits, label=[f"{n % 2}" for n in range(24)])
    torch.manual_seed(0)
    Aggregator(6, AggregatorOptions(width=32, layers=1), store.origin).save(str(tmp_path / "a"))
    config = replace(ProbeConfig(probing=QUICK), splits=Splits("all")).replaced(probes=["knn", "clustering"])
    runs, out = str(tmp_path / "runs"), str(tmp_path / "out")
    result = probe(store.location, str(tmp_path / "a"), runs=runs, out=out, config=config, console=Console(quiet=True))
    tables, folder = result.tables, result.folder
    assert [table.split for table in tables] == ["1", "2", "mean"]
    first, second, mean = (table.rows[1].metrics["knn_top1"].value for table in tables)
    assert mean == pytest.approx((first + second) / 2)
    assert folder == str(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results-1.png", "results-2.png", "map-1.png", "neighbours-2.png", "table.csv"} <= names
    values = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [table["split"] for table in values["splits"]] == ["1", "2", "mean"]


def test_a_mapped_store_gives_the_same_table(tmp_path):
    store = make_store(tmp_path / "s", FEATURES, sides=SUBSETS, label=[f"{n % 2}" for n in range(24)])
    torch.manual_seed(0)
    aggregator = Aggregator(6, AggregatorOptions(width=32, layers=1)).eval()
    probing = Probing(**{**QUICK.to_dict(), "probes": ["knn", "linear", "retrieval", "clustering"]})
    tables = [
        probe_table(store, [aggregator], probing, ingest=Ingest(ingest=mode, cache=str(tmp_path / "cache")))[0]
        for mode in ("memory", "disk")
    ]
    assert tables[0].values() == tables[1].values()
    assert list((tmp_path / "cache").glob("scale-ray-clips-*"))
    with pytest.raises(UserError, match="ingest: expected auto, memory or disk for probes, found stream"):
        probe_table(store, [aggregator], probing, ingest=Ingest(ingest="stream"))
