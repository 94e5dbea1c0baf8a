"""Each probe compared with an independent implementation, or with a known result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, normalized_mutual_info_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from scale_ray.aggregator import normalised_positions
from scale_ray.aggregator.model import Aggregator
from scale_ray.clip_sets.draws import video_keys
from scale_ray.config import AggregatorOptions, Probing, Representing
from scale_ray.probes import fitting, suite
from scale_ray.probes.data import ProbeDataset
from scale_ray.probes.fitting import Problem, Setting, TrainingSchedule, fit_heads
from scale_ray.probes.heads import AttentiveHead, FineTunedHead, LinearHead, MlpHead
from scale_ray.probes.inputs import SetInputs, Tokens, View
from scale_ray.probes.knn import centred, knn_scores, retrieval
from scale_ray.probes.metrics import cluster_metrics, score_metrics
from scale_ray.probes.monitor import halves_found
from scale_ray.probes.targets import CLASSES, MULTILABEL, NUMBERS, Targets
from scale_ray.warmup import warmup_then_cosine

CLIPS = 4


def blobs(count: int, classes: int, spread: float, seed: int, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def dataset_of(videos: torch.Tensor, targets: torch.Tensor, name: str = "v", noise: float = 0.1) -> ProbeDataset:
    """Videos whose clips scatter around one vector each."""
    generator = torch.Generator().manual_seed(3)
    clips = videos[:, None] + noise * torch.randn(len(videos), CLIPS, videos.shape[1], generator=generator)
    positions = normalised_positions(torch.rand(len(videos), CLIPS, 7, generator=generator))
    ids = [f"{name}{number}" for number in range(len(videos))]
    return ProbeDataset(ids, ids, targets, clips, positions, positions, video_keys(ids))


def classes_of(count: int) -> Targets:
    return Targets(CLASSES, [f"class {n}" for n in range(count)], {})


def task_of(dataset: ProbeDataset, target_spec: Targets, probing: Probing | None = None, view: View | None = None):
    rows = torch.arange(len(dataset))
    probing = probing or Probing(probe_min_steps=300, deep_min_steps=100, probe_epochs=1, deep_epochs=1)
    return suite.ProbeTask(view or View(dataset, "feature"), target_spec, rows[::2], rows[1::2], rows, probing, 0)


def top1(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return float((scores.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("spread", [0.5, 1.5, 4.0])
def test_knn_agrees_with_scikit_learn(spread):
    (bank, bank_labels), (queries, query_labels) = blobs(200, 5, spread, 1), blobs(80, 5, spread, 2)
    ours = knn_scores(centred(bank), torch.eye(5)[bank_labels], centred(queries), [20, 3], [0.07, 1.0])

    def prepared(x: torch.Tensor) -> np.ndarray:
        return torch.nn.functional.normalize(x - x.mean(0), dim=1).numpy()

    for (k, temperature), scores in ours.items():
        # For unit vectors the squared distance is 2 - 2 cosine.
        theirs = KNeighborsClassifier(
            k, weights=lambda d, t=temperature: np.exp((1 - d**2 / 2) / t), algorithm="brute"
        ).fit(prepared(bank), bank_labels.numpy())
        np.testing.assert_allclose(scores.numpy(), theirs.predict_proba(prepared(queries)), atol=1e-4)
        assert top1(scores, query_labels) == pytest.approx(
            theirs.score(prepared(queries), query_labels.numpy()), abs=1e-6
        )


def test_knn_in_blocks_is_knn_at_once(monkeypatch):
    (bank, labels), (queries, _) = blobs(50, 5, 1.0, 1), blobs(23, 5, 1.0, 2)
    arguments = (centred(bank), torch.eye(5)[labels], centred(queries), [7], [0.07])
    at_once = knn_scores(*arguments)
    monkeypatch.setattr("scale_ray.probes.knn._VALUES_AT_ONCE", 400)
    in_blocks = knn_scores(*arguments)
    torch.testing.assert_close(in_blocks[7, 0.07], at_once[7, 0.07])


@pytest.mark.parametrize("several", [False, True])
def test_retrieval_agrees_with_scikit_learn(several, monkeypatch):
    monkeypatch.setattr("scale_ray.probes.knn._VALUES_AT_ONCE", 3000)
    (bank, bank_labels), (queries, query_labels) = blobs(120, 6, 1.5, 1), blobs(40, 6, 1.5, 2)
    bank_targets, query_targets = torch.eye(6)[bank_labels], torch.eye(6)[query_labels]
    if several:
        bank_targets, query_targets = (t.roll(1, 1) + t for t in (bank_targets, query_targets))
    hits, precision = retrieval(centred(bank), bank_targets, centred(queries), query_targets, (1, 5, 10))
    cosine = (centred(queries) @ centred(bank).T).numpy()
    relevant = (query_targets @ bank_targets.T).numpy() > 0
    expected = [average_precision_score(*query) for query in zip(relevant, cosine, strict=True)]
    np.testing.assert_allclose(precision, expected, atol=1e-6)
    for k in (1, 5, 10):
        # A hit means that the best of the relevant videos is among the first k of scikit-learn's ranking.
        best = np.where(relevant, cosine, -np.inf).argmax(1)
        theirs = top_k_accuracy_score(best, cosine, k=k, labels=np.arange(120))
        assert hits[k].mean() == pytest.approx(theirs)


def test_a_query_with_nothing_relevant_counts_as_nothing_found():
    bank = torch.eye(3)
    hits, precision = retrieval(bank, torch.eye(3), bank, torch.zeros(3, 3), (1,))
    assert not hits[1].any()
    assert not precision.any()


def test_map_and_nmi_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 5)) < 0.3).astype(np.float32)
    targets[:, 4] = 0  # a label that does not occur among the test videos
    scores = rng.random((60, 5), np.float32)
    [metric] = score_metrics(
        "p", torch.from_numpy(scores), torch.from_numpy(targets), Targets(MULTILABEL, list("abcde"), {})
    )
    assert metric.name == "p_map"
    assert metric.value() == pytest.approx(average_precision_score(targets[:, :4], scores[:, :4]))
    clusters, classes = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    nmi, _ = cluster_metrics(clusters, torch.from_numpy(classes))
    expected = normalized_mutual_info_score(classes, clusters, average_method="geometric")
    assert nmi.value() == pytest.approx(expected)


def test_the_linear_probe_agrees_with_logistic_regression():
    """Both without weight decay and until convergence, on classes that are not separable: the same predictions."""
    (train, labels), (test, test_labels) = blobs(400, 4, 3.0, 1), blobs(200, 4, 3.0, 2)
    dataset, test_dataset = dataset_of(train, labels, noise=0.0), dataset_of(test, test_labels, "t", noise=0.0)
    probing = Probing(
        learning_rates=(1e-2,), weight_decays=(0.0,), probe_min_steps=2000, probe_epochs=1, probe_batch=400
    )
    ours = suite.linear(task_of(dataset, classes_of(4), probing)).scores(View(test_dataset, "feature"), 200)
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(C=np.inf, max_iter=2000).fit(scaler.transform(train), labels.numpy())
    expected = theirs.predict_proba(scaler.transform(test))
    np.testing.assert_allclose(ours.numpy(), expected, atol=0.02)
    assert abs(top1(ours, test_labels) - theirs.score(scaler.transform(test), test_labels.numpy())) <= 0.01


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_the_linear_probe_separates_what_is_separable_at_any_scale(scale):
    (train, labels), (test, test_labels) = blobs(100, 4, 0.3, 1), blobs(60, 4, 0.3, 2)
    probe = suite.linear(task_of(dataset_of(scale * train, labels, noise=0.1 * scale), classes_of(4)))
    test_dataset = dataset_of(scale * test, test_labels, noise=0.1 * scale)
    assert top1(probe.scores(View(test_dataset, "feature"), 60), test_labels) > 0.95


def test_a_column_that_never_changes_does_no_harm():
    (train, labels), (test, test_labels) = blobs(100, 4, 0.3, 1), blobs(60, 4, 0.3, 2)
    dataset, test_dataset = dataset_of(train, labels), dataset_of(test, test_labels)
    dataset.features[..., 0], test_dataset.features[..., 0] = 7.0, 9.0
    probe = suite.linear(task_of(dataset, classes_of(4)))
    assert top1(probe.scores(View(test_dataset, "feature"), 60), test_labels) > 0.95


def heads(width: int, outputs: int):
    torch.manual_seed(0)
    aggregator = Aggregator(width - 7, AggregatorOptions(width=32, layers=1, dropout=0.0))
    return {
        "linear": lambda: LinearHead(width, outputs),
        "mlp": lambda: MlpHead(width, outputs),
        "attentive": lambda: AttentiveHead(width, outputs),
        "finetuned": lambda: FineTunedHead(aggregator, torch.zeros(width + 25), torch.ones(width + 25), outputs),
    }


@pytest.mark.parametrize("name", ["linear", "mlp", "attentive", "finetuned"])
def test_settings_trained_at_once_are_settings_trained_alone(name):
    videos, labels = blobs(30, 3, 0.5, 1, width=19)
    dataset = dataset_of(videos, labels)
    problem = Problem(View(dataset, "feature"), dataset.targets, classes_of(3), torch.zeros(19), torch.ones(19))
    settings = [Setting(1e-3, 0.0), Setting(3e-4, 1.0), Setting(1e-2, 1e-2)]
    schedule = TrainingSchedule(batch=8, set_size=2, epochs=3, min_steps=1, num_draws=2, warmup_share=0.05)
    rows = torch.arange(3, 30)
    together = fit_heads(problem, rows, heads(19, 3)[name], settings, schedule, seed=5).scores(problem.inputs, rows)
    for number, setting in enumerate(settings):
        [alone] = fit_heads(problem, rows, heads(19, 3)[name], [setting], schedule, seed=5).scores(problem.inputs, rows)
        torch.testing.assert_close(together[number], alone, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=1e-3), "the settings make a difference"


@pytest.mark.parametrize("name", ["linear", "attentive"])
def test_the_learning_rate_of_a_probe_warms_up_over_its_first_steps_and_falls_to_zero(name, monkeypatch):
    rates: list[list[float]] = []
    made = fitting._optimizer

    def recorded(*arguments):
        optimizer = made(*arguments)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append([group["lr"] for group in o.param_groups]))
        return optimizer

    monkeypatch.setattr(fitting, "_optimizer", recorded)
    videos, labels = blobs(16, 2, 0.3, 1)
    probing = Probing(
        probe_min_steps=40, deep_min_steps=40, probe_epochs=1, deep_epochs=1, learning_rates=(1e-3,), weight_decays=(0,)
    )
    getattr(suite, name)(task_of(dataset_of(videos, labels), classes_of(2), probing))
    expected = [1e-3 * warmup_then_cosine(step, 2, 40) for step in range(40)]
    assert [rate for rate, *_ in rates] == pytest.approx(expected)
    assert rates[0] == [5e-4, 5e-4], "weights and biases alike"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "attentive", "finetuned"])
def test_the_deep_probes_learn(name):
    (train, labels), (test, test_labels) = blobs(100, 4, 0.4, 1), blobs(60, 4, 0.4, 2)
    dataset, test_dataset = dataset_of(train, labels), dataset_of(test, test_labels, "t")
    probing = Probing(probe_epochs=1, deep_epochs=1, probe_min_steps=60, deep_min_steps=60, learning_rates=(1e-3,))
    torch.manual_seed(0)
    aggregator = Aggregator(12, AggregatorOptions(width=32, layers=1)).eval()
    if name == "finetuned":
        view = View(dataset, "feature", Tokens(dataset, aggregator, Representing(), 2))
        probe = suite.finetuned(task_of(dataset, classes_of(4), probing, view), aggregator)
        inputs: View | SetInputs = SetInputs(test_dataset)
    else:
        probe, inputs = getattr(suite, name)(task_of(dataset, classes_of(4), probing)), View(test_dataset, "feature")
    assert top1(probe.scores(inputs, 60), test_labels) > 0.9


def test_fine_tuning_leaves_the_aggregator_as_it_was():
    train, labels = blobs(40, 4, 0.4, 1)
    dataset = dataset_of(train, labels)
    aggregator = Aggregator(12, AggregatorOptions(width=32, layers=1)).eval()
    before = {name: value.clone() for name, value in aggregator.state_dict().items()}
    view = View(dataset, "feature", Tokens(dataset, aggregator, Representing(), 2))
    probing = Probing(deep_min_steps=5, deep_epochs=1)
    suite.finetuned(task_of(dataset, classes_of(4), probing, view), aggregator)
    for name, value in aggregator.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_non_linear_probe_is_the_papers():
    head = MlpHead(768, 101)
    assert [tuple(layer.weight.shape) for layer in head.layers] == [(2048, 768), (2048, 2048), (512, 2048)]
    assert head.classifier.weight.shape == (101, 768 + 512)
    clips = torch.randn(3, 5, 768, generator=torch.Generator().manual_seed(0))
    first, second, last = head.layers
    hidden = last(second(first(clips).relu()).relu())
    assert (hidden < 0).any(), "there is no ReLU after the last layer"
    torch.testing.assert_close(head(clips), head.classifier(torch.cat([clips, hidden], 2)))


def test_the_non_linear_probe_sees_what_the_linear_one_sees():
    videos, labels = blobs(40, 4, 0.4, 1)
    probing = Probing(
        probe_min_steps=6,
        probe_epochs=1,
        probe_set_size=3,
        probe_batch=8,
        learning_rates=(1e-3, 1e-4),
        weight_decays=(0.0,),
    )
    seen: dict[str, list[tuple[int, int, int, list[int]]]] = {"linear": [], "mlp": []}
    for name, calls in seen.items():

        class Recorded(View):
            def drawn(self, rows, set_size, seed, epoch, calls=calls):
                calls.append((set_size, seed, epoch, rows.tolist()))
                return super().drawn(rows, set_size, seed, epoch)

        dataset = dataset_of(videos, labels)
        getattr(suite, name)(task_of(dataset, classes_of(4), probing, Recorded(dataset, "feature")))
    assert seen["mlp"] == seen["linear"]
    assert {set_size for set_size, *_ in seen["mlp"]} == {3}
    # On one half of the videos, batches of 8 of 20, then on all: 2 and 5 steps per epoch, and at least 6.
    assert len(seen["mlp"]) == 6 + 10


def test_low_shot_draws_so_many_of_each_class_and_nested():
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 3)
    dataset = dataset_of(torch.randn(83, 5), labels)
    task = task_of(dataset, classes_of(3))
    drawn = {amount: suite.low_shot_rows(task, amount) for amount in (0.01, 0.1, 0.5, 1, 5)}
    counts = {amount: torch.bincount(labels[rows], minlength=3).tolist() for amount, rows in drawn.items()}
    assert counts == {0.01: [1, 1, 1], 0.1: [6, 2, 1], 0.5: [30, 10, 2], 1: [1, 1, 1], 5: [5, 5, 3]}
    assert set(drawn[0.1].tolist()) < set(drawn[0.5].tolist())
    again = suite.low_shot_rows(replace(task, seed=1), 5)
    assert again.tolist() != drawn[5].tolist()


def test_low_shot_probes_rise_with_the_labels():
    (train, labels), (test, test_labels) = blobs(200, 4, 1.5, 1), blobs(200, 4, 1.5, 2)
    probing = Probing(probe_min_steps=300, probe_epochs=1, low_shot=(1, 0.5), learning_rates=(1e-2,))
    fitted = suite.low_shot(task_of(dataset_of(train, labels), classes_of(4), probing))
    view = View(dataset_of(test, test_labels), "feature")
    values = {name: top1(probe.scores(view, 200), test_labels) for name, probe in fitted.items()}
    assert list(values) == ["lowshot_1_per_class", "lowshot_0.5"]
    assert values["lowshot_0.5"] > values["lowshot_1_per_class"] + 0.1


def test_several_labels_and_numbers_are_learned():
    videos = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    is_train = torch.arange(300) < 200
    labels = (videos[:, :3] > 0.5).float()
    target_spec = Targets(MULTILABEL, list("abc"), {})
    probing = Probing(probe_min_steps=500, probe_epochs=1, learning_rates=(1e-2,))
    probe = suite.linear(task_of(dataset_of(videos[is_train], labels[is_train]), target_spec, probing))
    scores = probe.scores(View(dataset_of(videos[~is_train], labels[~is_train]), "feature"), 100)
    [metric] = score_metrics("linear", scores, labels[~is_train], target_spec)
    assert (metric.name, metric.more_is_better) == ("linear_map", True)
    assert metric.value() > 0.9

    # In large units: numbers are standardised for the training, and predicted in their own units.
    numbers = 1e6 + 1e5 * videos[:, :1]
    target_spec = Targets(NUMBERS, ["views"], {})
    task = task_of(dataset_of(videos[is_train], numbers[is_train]), target_spec, probing)
    test_dataset = dataset_of(videos[~is_train], numbers[~is_train])
    scores = suite.linear(task).scores(View(test_dataset, "feature"), 100)
    [metric] = score_metrics("linear", scores, numbers[~is_train], target_spec)
    assert (metric.name, metric.more_is_better) == ("linear_mse", False)
    assert metric.value() < 0.05 * float(numbers[~is_train].var())
    nearest = suite.knn(task)(View(test_dataset, "feature"))[20, 0.07]
    assert float((nearest - numbers[~is_train]).square().mean()) < 0.5 * float(numbers[~is_train].var())


@pytest.mark.slow
def test_random_labels_give_chance():
    (train, _), (test, _) = blobs(200, 4, 0.3, 1), blobs(400, 4, 0.3, 2)
    generator = torch.Generator().manual_seed(4)
    labels, test_labels = (torch.randint(0, 4, (count,), generator=generator) for count in (200, 400))
    probing = Probing(probe_min_steps=300, deep_min_steps=50, probe_epochs=1, deep_epochs=1, learning_rates=(1e-3,))
    task = task_of(dataset_of(train, labels), classes_of(4), probing)
    view = View(dataset_of(test, test_labels, "t"), "feature")
    for name in ("linear", "mlp", "attentive"):
        if name == "mlp":  # a large network: fewer steps
            task = replace(task, probing=replace(probing, probe_min_steps=50))
        assert abs(top1(getattr(suite, name)(task).scores(view, 400), test_labels) - 0.25) < 0.1, name
    assert abs(top1(suite.knn(task)(view)[20, 0.07], test_labels) - 0.25) < 0.1


def test_halves_find_each_other():
    tokens = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert halves_found(tokens, tokens + 0.01).all()
    assert not halves_found(tokens, tokens.roll(1, 0)).any()
