"""Nearest neighbours by cosine: k-NN classification and retrieval, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from scale_ray.probes.mapped import by_parts

# Numbers that a block of queries may take beside the bank: 64 MiB of float32.
_NUMBERS_AT_ONCE = 2**24
_ROWS_AT_ONCE = 4096


def centred(videos: Tensor, rows: Tensor | None = None, scratch: str | None = None) -> Tensor:
    """Representations (n, d) minus the mean over their own split, at unit norm (section 5 of the method).

    Of some `rows` alone, if they are given; `scratch` as in `by_parts`. A video that differs from the mean by
    no more than rounding has no direction, and is 0.
    """
    if rows is None:
        rows = torch.arange(len(videos))
    total = sum((videos[some].sum(0, dtype=torch.float64) for some in rows.split(_ROWS_AT_ONCE)), torch.tensor(0.0))
    mean = (total / len(rows)).float()
    noise = 1e-6 * mean.norm()

    def directions(some: Tensor) -> Tensor:
        apart = videos[rows[some]] - mean
        return F.normalize(torch.where(apart.norm(dim=1, keepdim=True) > noise, apart, 0.0), dim=1)

    return by_parts(len(rows), directions, scratch)


def knn_scores(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, ks: Sequence[int], temperatures: Sequence[float]
) -> dict[tuple[int, float], Tensor]:
    """Scores (m, K) of weighted k-nearest neighbours, for every k and temperature.

    `bank` (n, d) and `queries` (m, d) are at unit norm, `bank_targets` float32 (n, K). The k nearest vote
    with weight exp(cosine / temperature); a score is the weighted mean of their targets. A bank with fewer
    than k videos votes as a whole.
    """
    most = min(max(ks), len(bank))
    found: dict[tuple[int, float], list[Tensor]] = {(k, t): [] for k in ks for t in temperatures}
    for block in _blocks(queries, len(bank) + most * bank_targets.shape[1]):
        cosine, nearest = (block @ bank.T).topk(most, dim=1)
        votes = bank_targets[nearest]
        for (k, temperature), scores in found.items():
            scores.append(voted(cosine[:, :k], votes[:, :k], temperature))
    return {setting: torch.cat(scores) for setting, scores in found.items()}


def voted(cosine: Tensor, votes: Tensor, temperature: float) -> Tensor:
    """The weighted mean (m, K) of the votes (m, k, K) of neighbours by their cosine (m, k), nearest first."""
    # The largest weight is 1: the same shares, without overflow at small temperatures.
    weights = ((cosine - cosine[:, :1]) / temperature).exp().nan_to_num()
    return torch.einsum("mk,mkd->md", weights / weights.sum(1, keepdim=True).clamp(min=1e-12), votes)


def retrieval(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, query_targets: Tensor, ks: Sequence[int]
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """For every query whether one of the k nearest is relevant, for each k; and its average precision.

    Vectors at unit norm, targets float32 (n, K) and (m, K) of 0 and 1; a video of the bank is relevant if it
    shares a label with the query. A query to which nothing is relevant counts as 0.
    """
    hits: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    precision: list[np.ndarray] = []
    targets = query_targets.split(_rows_at_once(len(bank)))
    for block, wanted in zip(_blocks(queries, len(bank)), targets, strict=True):
        cosine = block @ bank.T
        relevant = (wanted @ bank_targets.T) > 0
        nearest = cosine.topk(min(max(ks), len(bank)), dim=1).indices
        among = relevant.gather(1, nearest)
        for k in ks:
            hits[k].append(among[:, :k].any(1).numpy())
        # One query at a time: given all at once, it takes a hundred times as long for 2,000 of them.
        pairs = zip(relevant.numpy(), cosine.numpy(), strict=True)
        precision.append(np.array([average_precision_score(*pair) if pair[0].any() else 0.0 for pair in pairs]))
    return {k: np.concatenate(found) for k, found in hits.items()}, np.concatenate(precision)


def _rows_at_once(numbers_of_one: int) -> int:
    return max(_NUMBERS_AT_ONCE // numbers_of_one, 1)


def _blocks(queries: Tensor, numbers_of_one: int) -> Iterator[Tensor]:
    yield from queries.split(_rows_at_once(numbers_of_one))
