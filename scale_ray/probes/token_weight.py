"""Chooses the weight of an aggregator's tokens beside the backbone's feature, among the training videos."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scale_ray.config import Probing, Representing
from scale_ray.hashing import uniform_hash
from scale_ray.probes.data import ProbeSplit
from scale_ray.probes.inputs import Tokens, View
from scale_ray.probes.knn import knn_scores
from scale_ray.probes.suite import selection_score


def chosen_token_weight(split: ProbeSplit, tokens: Tokens, representing: Representing, probing: Probing) -> float:
    """The one of `probing.token_weights` with the best k-NN top-1 among the training videos of a split.

    Official validation videos are classified by the training videos. Without them, each fold of the training videos is
    classified by the other folds; folds share no group, and hold about `probing.choice_share` of the groups each. With
    one group there is nothing to choose by, and the first weight is taken.
    """
    first, *others = probing.token_weights
    folds = _folds(split, probing)
    if not others or not folds:
        return first
    k, temperature = probing.knn_k[0], probing.knn_temperature[0]
    targets = torch.cat([split.train.targets[held_out] for _, held_out in folds])

    def rank(weight: float) -> tuple[float, float]:
        view = View(split.train, "feature", tokens, replace(representing, token_weight=weight))
        scores = []
        for bank, held_out in folds:
            votes = split.targets.dense(split.train.targets[bank])
            [of_fold] = knn_scores(view.centred(bank), votes, view.centred(held_out), [k], [temperature]).values()
            scores.append(of_fold)
        return selection_score(torch.cat(scores), targets, split.targets)

    return max(probing.token_weights, key=rank)  # the first of equal ones


def _folds(split: ProbeSplit, probing: Probing) -> list[tuple[Tensor, Tensor]]:
    """Rows of `split.train` that vote, and rows that are classified by them, of each fold."""
    training = split.is_training
    if not bool(training.all()):
        return [(training.nonzero()[:, 0], (~training).nonzero()[:, 0])]
    groups = split.train.groups
    order = sorted(set(groups), key=lambda group: uniform_hash(f"token weight {probing.probe_seed}\0{group}"))
    num_folds = min(round(1 / probing.choice_share), len(order))
    if num_folds < 2:
        return []
    fold_of = {group: number % num_folds for number, group in enumerate(order)}
    folds = torch.tensor([fold_of[group] for group in groups])
    return [((folds != fold).nonzero()[:, 0], (folds == fold).nonzero()[:, 0]) for fold in range(num_folds)]
