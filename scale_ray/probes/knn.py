"""Nearest neighbours by cosine: k-NN classification and retrieval, block by block of the queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scale_ray.probes.mapped import by_parts

# Maximum number of values computed at once for a block of queries: 64 MiB of float32.
_VALUES_AT_ONCE = 2**24
_ROWS_AT_ONCE = 4096


def centred(videos: Tensor, rows: Tensor | None = None, scratch: str | None = None) -> Tensor:
    """Representations (n, d) minus their mean, at unit norm (section 5 of the method).

    With `rows` only these videos are used, for the mean too; `scratch` as in `by_parts`. A video that differs from the
    mean only by rounding errors has no direction and becomes 0.
    """
    if rows is None:
        rows = torch.arange(len(videos))
    total = sum((videos[part].sum(0, dtype=torch.float64) for part in rows.split(_ROWS_AT_ONCE)), torch.tensor(0.0))
    mean = (total / len(rows)).float()
    noise = 1e-6 * mean.norm()

    def directions(part: Tensor) -> Tensor:
        differences = videos[rows[part]] - mean
        return F.normalize(torch.where(differences.norm(dim=1, keepdim=True) > noise, differences, 0.0), dim=1)

    return by_parts(len(rows), directions, scratch)


def knn_scores(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, ks: Sequence[int], temperatures: Sequence[float]
) -> dict[tuple[int, float], Tensor]:
    """Scores (m, K) of weighted k-nearest neighbours, by k and temperature.

    `bank` (n, d) and `queries` (m, d) are at unit norm, `bank_targets` float32 (n, K). The k nearest vote with weight
    exp(cosine / temperature); a score is the weighted mean of their targets. If the bank has fewer than k videos, all
    of them vote.
    """
    num_neighbours = min(max(ks), len(bank))
    blocks: dict[tuple[int, float], list[Tensor]] = {(k, t): [] for k in ks for t in temperatures}
    for block in _blocks(queries, len(bank) + num_neighbours * bank_targets.shape[1]):
        cosine, nearest = (block @ bank.T).topk(num_neighbours, dim=1)
        votes = bank_targets[nearest]
        for (k, temperature), scores in blocks.items():
            scores.append(weighted_vote(cosine[:, :k], votes[:, :k], temperature))
    return {setting: torch.cat(scores) for setting, scores in blocks.items()}


def weighted_vote(cosine: Tensor, votes: Tensor, temperature: float) -> Tensor:
    """The mean (m, K) of the votes (m, k, K) of neighbours, weighted by their cosine (m, k), nearest first."""
    # Scaled so that the largest weight is 1, which avoids overflow at small temperatures.
    weights = ((cosine - cosine[:, :1]) / temperature).exp().nan_to_num()
    return torch.einsum("mk,mkd->md", weights / weights.sum(1, keepdim=True).clamp(min=1e-12), votes)


def retrieval(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, query_targets: Tensor, ks: Sequence[int]
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """For each k, whether one of the k nearest of every query is relevant, bool (m,); and average precisions (m,).

    `bank` (n, d) and `queries` (m, d) are at unit norm, targets float32 (n, K) and (m, K) of 0 and 1. A video of the
    bank is relevant if it shares a label with the query. A query without relevant videos counts as 0.
    """
    from sklearn.metrics import average_precision_score

    hits: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    precision: list[np.ndarray] = []
    blocks = zip(_blocks(queries, len(bank)), _blocks(query_targets, len(bank)), strict=True)
    for block, block_targets in blocks:
        cosine = block @ bank.T
        relevant = (block_targets @ bank_targets.T) > 0
        nearest = cosine.topk(min(max(ks), len(bank)), dim=1).indices
        nearest_relevant = relevant.gather(1, nearest)
        for k in ks:
            hits[k].append(nearest_relevant[:, :k].any(1).numpy())
        # Query by query: one call for 2,000 queries takes a hundred times as long.
        pairs = zip(relevant.numpy(), cosine.numpy(), strict=True)
        precision.append(np.array([average_precision_score(*pair) if pair[0].any() else 0.0 for pair in pairs]))
    return {k: np.concatenate(parts) for k, parts in hits.items()}, np.concatenate(precision)


def _blocks(queries: Tensor, values_per_query: int) -> tuple[Tensor, ...]:
    return queries.split(max(_VALUES_AT_ONCE // values_per_query, 1))
