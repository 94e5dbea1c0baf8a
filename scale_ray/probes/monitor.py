"""Metrics that monitor a pretraining and rank the settings of a sweep; they never use test videos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from scale_ray.aggregator import Aggregator, clip_representations, set_tokens
from scale_ray.clip_sets import normalised_positions
from scale_ray.config import Probing
from scale_ray.hashing import uniform_hash
from scale_ray.probes.knn import centred, knn_scores, weighted_vote
from scale_ray.store import ClipFeatures, FeatureStore, StoredClips

_VIDEOS_AT_ONCE = 1024


def knn_top1(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, probing: Probing) -> float:
    """Top-1 of weighted k-nearest neighbours, a fraction in [0, 1].

    `bank` (n, d) and `queries` (m, d) are video representations; both are centred on their own mean and normalised to
    unit norm. The first values of `knn_k` and `knn_temperature` are used.
    """
    k, temperature = probing.knn_k[0], probing.knn_temperature[0]
    dense = torch.nn.functional.one_hot(bank_labels).float()
    [scores] = knn_scores(centred(bank), dense, centred(queries), [k], [temperature]).values()
    return _top1(scores, query_labels)


def knn_top1_within(videos: Tensor, labels: Tensor, groups: Tensor, probing: Probing) -> float:
    """Top-1 of k-nearest neighbours among the videos themselves, without those of the query's own group.

    Monitors a training. `videos` (n, d) are representations, `labels` and `groups` int64 (n,). A fraction in [0, 1].
    """
    videos = centred(videos)
    cosine = (videos @ videos.T).masked_fill(groups[:, None] == groups, -torch.inf)
    cosine, nearest = cosine.topk(min(probing.knn_k[0], len(videos)), dim=1)
    votes = torch.nn.functional.one_hot(labels).float()[nearest]
    return _top1(weighted_vote(cosine, votes, probing.knn_temperature[0]), labels)


def _top1(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).float().mean())


def validation_monitor(
    aggregator: Aggregator, train: ClipFeatures, validation: ClipFeatures, labels: dict[str, str], probing: Probing
) -> tuple[str, float]:
    """The metric that ranks settings without using test videos: its name, and its value in [0, 1].

    k-NN top-1 of the validation videos if they are labelled, otherwise `halves_top1` of their set tokens.
    """
    classes = sorted({labels[i] for i in (*train.video_ids, *validation.video_ids) if i in labels})
    if len(classes) > 1 and any(i in labels for i in validation.video_ids):
        (bank, bank_labels), (queries, query_labels) = (
            _labelled_representations(clips, labels, classes, aggregator) for clips in (train, validation)
        )
        return "validation_knn_top1", knn_top1(bank, bank_labels, queries, query_labels, probing)
    features = torch.from_numpy(validation.features)
    positions = normalised_positions(torch.from_numpy(validation.positions))
    halves = [set_tokens(aggregator, features[:, half::2], positions[:, half::2]) for half in (0, 1)]
    return "validation_halves_top1", halves_top1(*halves)


class TrainingMonitor:
    """k-NN top-1 among labelled training videos during a training; a video's own group does not vote.

    Uses at most `max_videos` of the videos, drawn by a hash of their ids.
    """

    def __init__(self, store: FeatureStore, train: StoredClips, probing: Probing, max_videos: int = 2000) -> None:
        labels, groups = store.labels(), store.groups()
        labelled = sorted((i for i in train.video_ids if i in labels), key=lambda i: uniform_hash(f"monitor\0{i}"))
        labelled = labelled[:max_videos]
        self._classes = sorted({labels[video_id] for video_id in labelled})
        self._labels, self._probing = labels, probing
        self._clips = StoredClips(store, train.mode, set(labelled)).read() if len(self._classes) > 1 else None
        if self._clips is not None:
            names = [groups[video_id] for video_id in self._clips.video_ids]
            self._groups = torch.tensor([sorted(set(names)).index(name) for name in names])

    def __call__(self, aggregator: Aggregator) -> dict[str, float]:
        """`monitor_knn_top1` of the aggregator; empty with fewer than two classes."""
        if self._clips is None:
            return {}
        videos, labels = _labelled_representations(self._clips, self._labels, self._classes, aggregator)
        return {"monitor_knn_top1": knn_top1_within(videos, labels, self._groups, self._probing)}


def _labelled_representations(
    clips: ClipFeatures, labels: dict[str, str], classes: Sequence[str], aggregator: Aggregator
) -> tuple[Tensor, Tensor]:
    """Representations (n, d) of the labelled videos, and their classes, int64 (n,)."""
    labelled = clips.subset([row for row, video_id in enumerate(clips.video_ids) if video_id in labels])
    features = torch.from_numpy(labelled.features)
    positions = normalised_positions(torch.from_numpy(labelled.positions))
    videos = clip_representations(features, set_tokens(aggregator, features, positions)).mean(1)
    return videos, torch.tensor([classes.index(labels[video_id]) for video_id in labelled.video_ids])


def halves_top1(first: Tensor, second: Tensor) -> float:
    """How often the set token of half of a video's clips is nearest to that of its other half, in [0, 1].

    `first` and `second` (n, E) are the set tokens of the halves of all videos. Needs no labels, and is comparable
    across set sizes and mask ratios.
    """
    others = F.normalize(second, dim=1).T
    nearest = torch.cat([(part @ others).argmax(1) for part in F.normalize(first, dim=1).split(_VIDEOS_AT_ONCE)])
    return float((nearest == torch.arange(len(first))).float().mean())
