import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics

from scale_ray.probes.bootstrap import BootstrapSamples, Estimate, resamples_of
from scale_ray.probes.metrics import Metric, cluster_metrics, mean_metric, score_metrics
from scale_ray.probes.table import ProbeRow, ProbeTable, mean_table
from scale_ray.probes.targets import Targets


def test_resamples_draw_whole_groups_with_replacement():
    groups = ["a", "a", "b", "c", "c", "c"]
    members = {"a": [0, 1], "b": [2], "c": [3, 4, 5]}
    drawn = list(resamples_of(groups, 50, 0))
    for rows in drawn:
        counts = {name: np.isin(rows, group).sum() / len(group) for name, group in members.items()}
        assert all(count == int(count) for count in counts.values()), "whole groups"
        assert sum(counts.values()) == 3, "as many draws as groups"
    assert len({tuple(rows) for rows in drawn}) > 5
    again = list(resamples_of(groups, 50, 0))
    assert all((rows == same).all() for rows, same in zip(drawn, again, strict=True))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.7).astype(float)
    rows = list(resamples_of([str(n) for n in range(400)], 2000, 1))
    estimate = BootstrapSamples.from_metrics([mean_metric("p_top1", values)], rows).estimate(0)
    error = values.std() / np.sqrt(400)
    assert estimate.value == values.mean()
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.005)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.005)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """200 experiments of 100 videos in 20 groups; all videos of a group agree, as clips of the same scene may do."""
    rng = np.random.default_rng(0)
    groups = [str(n // 5) for n in range(100)]
    covered = {"grouped": 0, "single": 0}
    for _ in range(200):
        values = np.repeat((rng.random(20) < 0.6).astype(float), 5)
        for name, units in (("grouped", groups), ("single", [str(n) for n in range(100)])):
            draws = list(resamples_of(units, 200, 2))
            estimate = BootstrapSamples.from_metrics([mean_metric("m", values)], draws).estimate(0)
            covered[name] += estimate.low <= 0.6 <= estimate.high
    assert covered["grouped"] / 200 > 0.88
    assert covered["single"] / 200 < 0.75, "intervals of videos treated as independent are too narrow"


def test_the_spread_over_the_seeds_is_in_the_interval():
    steady = [mean_metric("m", np.full(50, 0.5)) for _ in range(5)]
    moved = [mean_metric("m", np.full(50, value)) for value in (0.3, 0.4, 0.5, 0.6, 0.7)]
    rows = list(resamples_of([str(n) for n in range(50)], 500, 0))
    first, second = (BootstrapSamples.from_metrics(metrics, rows).estimate(0) for metrics in (steady, moved))
    assert (first.low, first.high) == (0.5, 0.5)
    assert second.value == pytest.approx(0.5)
    assert second.low < 0.43
    assert second.high > 0.57


def test_a_difference_is_paired():
    """Two probes that are right on the same videos except one: their difference varies far less than either."""
    ours = (np.random.default_rng(0).random(200) < 0.5).astype(float)
    theirs = ours.copy()
    theirs[np.flatnonzero(ours)[0]] = 0.0
    both = mean_metric("m", ours), mean_metric("m", theirs)
    rows = list(resamples_of([str(n) for n in range(200)], 500, 0))
    first, second = (BootstrapSamples.from_metrics([metric], rows) for metric in both)
    alone, gain = first.estimate(0), (first - second).estimate(0)
    assert gain.value == pytest.approx(1 / 200)
    assert gain.low >= 0
    assert gain.high - gain.low < 0.2 * (alone.high - alone.low)


def test_mean_average_precision_of_any_draw_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 12, (60, 5)) / 12)  # many of them equal
    targets = torch.from_numpy((rng.random((60, 5)) < 0.2).astype(np.float32))
    targets[:, 4] = 0
    [metric] = score_metrics("p", scores, targets, Targets("multilabel", list("abcde"), {}))
    for rows in [np.arange(60), *resamples_of([str(n) for n in range(60)], 10, 0)]:
        drawn_targets, drawn_scores = targets.numpy()[rows], scores.numpy()[rows]
        occurs = drawn_targets.any(0)
        expected = metrics.average_precision_score(drawn_targets[:, occurs], drawn_scores[:, occurs])
        assert metric.compute(rows) == pytest.approx(expected)
    assert metric.compute(np.flatnonzero(~targets.numpy().any(1))) == 0.0
    draws = list(resamples_of([str(n) for n in range(60)], 200, 0))
    estimate = BootstrapSamples.from_metrics([metric], draws).estimate(0)
    assert estimate.low < metric.value() < estimate.high


def test_the_interval_of_an_agreement_lies_around_it():
    """Random clusters: a video drawn twice agrees with itself, so the value of every draw is too high."""
    rng = np.random.default_rng(0)
    [nmi, _] = cluster_metrics(rng.integers(6, size=60), torch.from_numpy(rng.integers(6, size=60)))
    draws = list(resamples_of([str(n) for n in range(60)], 300, 0))
    assert np.mean([nmi.compute(draw) for draw in draws]) > nmi.value() + 0.05
    estimate = BootstrapSamples.from_metrics([nmi], draws).estimate(0)
    assert estimate.low < nmi.value() < estimate.high
    assert (estimate.low + estimate.high) / 2 == pytest.approx(nmi.value(), abs=0.02)


def test_a_measure_that_is_no_mean_is_asked_again_for_each_draw():
    calls = []
    metric = Metric("m", lambda rows: calls.append(len(rows)) or float(np.median(rows)), 7)
    estimate = BootstrapSamples.from_metrics([metric], list(resamples_of(list("abcdefg"), 20, 0))).estimate(0)
    assert estimate.value == 3.0
    assert len(calls) == 21


def table(split: str = "default", shift: float = 0.0) -> ProbeTable:
    def near(value: float) -> Estimate:
        return Estimate(value + shift, value + shift - 0.1, value + shift + 0.1, [value + shift])

    metrics = {
        "retrieval_recall_at_1": near(0.6),
        "knn_top1": near(0.5),
        "knn_k5_t0.07_top1": near(0.55),
        "linear_top1": near(0.7),
        "lowshot_5_per_class_top1": near(0.4),
        "lowshot_0.05_top1": near(0.3),
        "clustering_nmi": near(0.2),
    }
    rows = [ProbeRow("backbone feature alone", metrics), ProbeRow("with trained aggregator", {"mlp_top1": near(0.8)})]
    return ProbeTable(rows, {"knn_top1": near(0.1)}, 0.25, "classes", split, 20, 10, 5, 4, 1, ["a note"])


def test_a_table_on_the_screen_has_the_main_measures_in_order_and_fits():
    lines = table().lines()
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    heads = ["k-NN top-1", "linear top-1", "MLP top-1", "5 per class top-1", "5% labels top-1", "recall@1", "NMI"]
    assert [text.index(head) for head in heads] == sorted(text.index(head) for head in heads)
    assert "k 5" not in text
    assert "0.500 ±0.100" in text
    assert "+0.100 ±0.100" in text
    assert "20 training and 10 test videos in 5 groups, 4 classes; always the most frequent class: 0.250" in lines
    assert lines[-1] == "a note"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_seeds": 1}, "the intervals cover the test groups only, not what another seed would change"),
        (
            {"num_seeds": 1, "num_test_groups": 10},
            "the intervals cover the test videos only, not what another seed would change",
        ),
        (
            {"num_seeds": 5},
            "the intervals cover the test groups and the seeds of the probes, not those of the pretraining",
        ),
        (
            {"num_seeds": 5, "num_aggregators": 5},
            "the intervals cover the test groups and the seeds, of pretraining and probes",
        ),
        ({"num_test_groups": 1}, "only one test group: all draws are equal, so intervals mean nothing"),
    ],
)
def test_a_table_says_what_its_intervals_cover(changes, expected):
    described = replace(table(), **changes)
    assert [line for line in described.lines() if "intervals" in line] == [expected]
    assert expected in described.markdown()


def test_the_mean_is_of_what_every_split_has():
    other = table("2", 0.1)
    del other.rows[0].metrics["clustering_nmi"]
    assert "clustering_nmi" not in mean_table([table("1"), other]).rows[0].metrics
    assert "clustering_nmi" not in mean_table([other, table("1")]).rows[0].metrics
    assert mean_table([table("1"), other]).rows[0].metrics["knn_top1"].value == pytest.approx(0.55)


def test_errors_are_told_in_units_of_their_own():
    errors = {"knn_mse": Estimate(0.000123456, 0.0001, 0.0002, [0.0]), "linear_mse": Estimate(12345.6, 1e4, 2e4, [0.0])}
    table = ProbeTable([ProbeRow("a", errors)], {}, 1.0, "numbers", "default", 20, 10, 10, 0, 1)
    assert "0.000123 ±5e-05" in table.lines()[2]
    assert "| 0.000123 [0.0001, 0.0002] | 1.23e+04 [1e+04, 2e+04] |" in table.markdown()


def test_markdown_csv_and_json_hold_everything():
    markdown = table().markdown()
    assert "| backbone feature alone | 0.500 [0.400, 0.600] | 0.550 [0.450, 0.650] |" in markdown
    assert "k-NN, k 5, t 0.07, top-1" in markdown
    assert "| *gain over the feature alone* | +0.100 [+0.000, +0.200] |" in markdown
    rows = list(csv.DictReader(io.StringIO(table().csv())))
    assert len(rows) == 7 + 1 + 1
    [row] = [row for row in rows if row["metric"] == "linear_top1"]
    assert (row["value"], row["low"], row["high"], row["seeds"]) == ("0.7", "0.6", "0.8", "0.7")
    values = json.loads(json.dumps(table().values()))
    assert values["rows"][0]["metrics"]["knn_top1"] == {"value": 0.5, "low": 0.4, "high": 0.6, "each": [0.5]}


def test_several_splits_have_a_mean():
    mean = mean_table([table("1"), table("2", 0.2)])
    assert mean.rows[0].metrics["knn_top1"].value == pytest.approx(0.6)
    assert mean.gains["knn_top1"].low == pytest.approx(0.1)
    assert mean.notes == ["mean over the splits 1, 2", "a note"]
