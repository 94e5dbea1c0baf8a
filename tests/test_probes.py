import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from scale_ray.config import Probing
from scale_ray.probes import halves_top1, knn_top1, linear_top1
from scale_ray.sets import video_keys


def blobs(count: int, classes: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, 12, generator=generator), labels


@pytest.mark.parametrize("spread", [0.5, 1.5, 4.0])
def test_knn_agrees_with_scikit_learn(spread):
    (bank, bank_labels), (queries, query_labels) = blobs(200, 5, spread, 1), blobs(80, 5, spread, 2)
    probing = Probing(knn_k=20, knn_temperature=0.07)

    def prepared(x: torch.Tensor) -> np.ndarray:
        return torch.nn.functional.normalize(x - x.mean(0), dim=1).numpy()

    # For unit vectors the squared distance is 2 - 2 cosine.
    theirs = KNeighborsClassifier(20, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute")
    theirs.fit(prepared(bank), bank_labels.numpy())
    expected = theirs.score(prepared(queries), query_labels.numpy())
    assert knn_top1(bank, bank_labels, queries, query_labels, probing) == pytest.approx(expected, abs=1e-6)


def linear(train_NVd, train_labels, test_NVd, test_labels):
    rows = torch.arange(len(train_labels))[:, None]
    return linear_top1(
        lambda chosen: train_NVd[rows, chosen],
        video_keys([str(n) for n in range(len(train_labels))]),
        train_NVd.shape[1],
        train_labels,
        test_NVd,
        test_labels,
        Probing(linear_min_steps=600, linear_learning_rate=1e-2, probe_set_size=2),
    )


def with_clips(x: torch.Tensor) -> torch.Tensor:
    return x[:, None] + 0.1 * torch.randn(len(x), 4, x.shape[1], generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_the_linear_probe_separates_what_is_separable_at_any_scale(scale):
    (train, train_labels), (test, test_labels) = blobs(100, 4, 0.3, 1), blobs(60, 4, 0.3, 2)
    assert linear(scale * with_clips(train), train_labels, scale * with_clips(test), test_labels) > 0.95


def test_random_labels_give_chance():
    (train, _), (test, _) = blobs(200, 4, 0.3, 1), blobs(400, 4, 0.3, 2)
    generator = torch.Generator().manual_seed(4)
    labels = [torch.randint(0, 4, (count,), generator=generator) for count in (200, 400)]
    assert abs(linear(with_clips(train), labels[0], with_clips(test), labels[1]) - 0.25) < 0.1
    assert abs(knn_top1(train, labels[0], test, labels[1], Probing()) - 0.25) < 0.1


def test_a_column_that_never_changes_does_no_harm():
    (train, train_labels), (test, test_labels) = blobs(100, 4, 0.3, 1), blobs(60, 4, 0.3, 2)
    train, test = with_clips(train), with_clips(test)
    train[..., 0], test[..., 0] = 7.0, 9.0
    assert linear(train, train_labels, test, test_labels) > 0.95


def test_halves_find_each_other():
    tokens = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert halves_top1(tokens, tokens + 0.01) == 1.0
    assert halves_top1(tokens, tokens.roll(1, 0)) == 0.0
