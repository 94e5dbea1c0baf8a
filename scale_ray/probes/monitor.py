"""Metrics that monitor a pretraining and rank the settings of a sweep; they never use test videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from scale_ray.aggregator import (
    Aggregator,
    clip_representations,
    normalised_positions,
    set_tokens,
    videos_per_block,
)
from scale_ray.clip_sets import ResidentClips
from scale_ray.config import Probing, Representing
from scale_ray.errors import UserError
from scale_ray.hashing import uniform_hash
from scale_ray.probes.data import ProbeDataset
from scale_ray.probes.inputs import Tokens, View
from scale_ray.probes.knn import centred, knn_scores, weighted_vote
from scale_ray.probes.mapped import ROWS_AT_ONCE, by_parts
from scale_ray.probes.suite import ProbeTask, linear
from scale_ray.probes.targets import CLASSES, Targets
from scale_ray.store import ClipFeatures, FeatureStore, StoredClips, TrainingStores

_VIDEOS_AT_ONCE = 1024


def knn_top1_within(videos: Tensor, labels: Tensor, groups: Tensor, probing: Probing) -> float:
    """Top-1 of k-nearest neighbours among the videos themselves, without those of the query's own group.

    Monitors a training. `videos` (n, d) are representations, `labels` and `groups` int64 (n,). A fraction in [0, 1].

    Raises
    ------
    ValueError
        If all videos are of one group: none of them has a neighbour.
    """
    if len(groups.unique()) < 2:
        raise ValueError("groups: expected videos of at least 2 groups, found 1: a group has no vote on its own videos")
    videos = centred(videos)
    cosine = (videos @ videos.T).masked_fill(groups[:, None] == groups, -torch.inf)
    cosine, nearest = cosine.topk(min(probing.knn_k[0], len(videos)), dim=1)
    votes = torch.nn.functional.one_hot(labels).float()[nearest]
    scores = weighted_vote(cosine, votes, probing.knn_temperature[0])
    return float((scores.argmax(1) == labels).float().mean())


def ranking_of(video_ids: Sequence[str], fold_of: Mapping[str, int], labels: Mapping[str, str], rank_by: str) -> str:
    """How the aggregators of a sweep are scored: `rank_by`, or for `auto` what the labels allow.

    That is `knn` if every fold has labelled videos, and the other videos labels of at least two classes, otherwise
    `halves`.

    Raises
    ------
    UserError
        If top-1 was asked for, but the labels do not allow it.
    """
    labelled = [video_id for video_id in video_ids if video_id in labels]
    for fold in sorted(set(fold_of.values())):
        inside = sum(fold_of[video_id] == fold for video_id in labelled)
        classes = len({labels[video_id] for video_id in labelled if fold_of[video_id] != fold})
        if inside and classes > 1:
            continue
        if rank_by in ("knn", "linear"):
            raise UserError(
                f"rank_by: expected labelled videos in every fold for {rank_by}, and two classes among the others, "
                f"found {inside} videos and {classes} classes; use --rank-by halves, or fewer --folds"
            )
        return "halves"
    return "knn" if rank_by == "auto" else rank_by


class FoldValidation:
    """Scores an aggregator on the videos of a fold that it was not trained on; test videos are never used.

    Parameters
    ----------
    clips
        The `train` clips of all training videos, on the CPU.
    held_out
        Whether each of these videos is in the fold, bool (videos,).
    labels, groups
        The label of each video that has one, and the group of every video, by id.
    rank_by
        `knn` or `linear`: top-1 with the labels, learned from the other videos; `halves`: how often the set token of
        half of a video's clips is nearest to that of its other half.

    `monitor` is the name of the score, `rows` are the videos of the fold that are scored.
    """

    def __init__(
        self,
        clips: ResidentClips,
        held_out: Tensor,
        labels: Mapping[str, str],
        groups: Mapping[str, str],
        probing: Probing,
        rank_by: str,
    ) -> None:
        ids = clips.video_ids
        labelled = torch.tensor([video_id in labels for video_id in ids])
        known, fold = (labelled & ~held_out).nonzero()[:, 0], (labelled & held_out).nonzero()[:, 0]
        names = sorted({labels[ids[row]] for row in known.tolist()})
        self.monitor = f"{rank_by}_top1"
        self.rows = held_out.nonzero()[:, 0] if rank_by == "halves" else fold
        self._known, self._clips, self._rank_by = known, clips, rank_by
        # Only the first setting of a grid: selecting one would take videos away from the fit.
        self._probing = replace(
            probing, learning_rates=probing.learning_rates[:1], weight_decays=probing.weight_decays[:1]
        )
        # A class that the fold alone has cannot be learned; an unlabelled video is not looked at.
        numbers = {name: number for number, name in enumerate(names)}
        self._targets = torch.tensor([numbers.get(labels.get(video_id, ""), len(names)) for video_id in ids])
        self._spec = Targets(CLASSES, [*names, ""], {})
        self._groups = [groups[video_id] for video_id in ids]

    @property
    def groups(self) -> list[str]:
        """The group of each of the `rows`."""
        return [self._groups[row] for row in self.rows.tolist()]

    def __call__(self, aggregator: Aggregator) -> Tensor:
        """Whether each of the `rows` is right, bool (rows,)."""
        if self._rank_by == "halves":
            return halves_found(*(self._tokens_of_half(aggregator, half) for half in (0, 1)))
        view = View(
            self._dataset, "feature", Tokens(self._dataset, aggregator, Representing(), self._probing.probe_draws)
        )
        if self._rank_by == "knn":
            k, temperature = self._probing.knn_k[0], self._probing.knn_temperature[0]
            bank, queries = view.centred(self._known), view.centred(self.rows)
            votes = self._spec.dense(self._targets[self._known])
            [scores] = knn_scores(bank, votes, queries, [k], [temperature]).values()
        else:
            task = ProbeTask(view, self._spec, self._known, self._known[:0], self._known, self._probing, seed=0)
            scores = linear(task).fitted.scores(view, self.rows)[0]
        return scores.argmax(1) == self._targets[self.rows]

    def _tokens_of_half(self, aggregator: Aggregator, half: int) -> Tensor:
        """The set token of every other clip of each of the `rows`, from clip 0 or 1 on, float32 (rows, E)."""
        features, positions = self._clips.features, self._clips.positions

        def tokens(part: Tensor) -> Tensor:
            rows = self.rows[part]
            return set_tokens(aggregator, features[rows, half::2], positions[rows, half::2])

        return by_parts(len(self.rows), tokens, None, videos_per_block(ROWS_AT_ONCE, self._clips.num_clips))

    @cached_property
    def _dataset(self) -> ProbeDataset:
        clips = self._clips
        return ProbeDataset(
            list(clips.video_ids),
            self._groups,
            self._targets,
            clips.features,
            clips.positions,
            clips.positions,  # in the place of the geometry, which no score here uses
            clips.keys,
        )


class TrainingMonitor:
    """k-NN top-1 among labelled training videos during a training; a video's own group does not vote.

    Uses at most `max_videos` of the videos, drawn by a hash of their ids.
    """

    def __init__(
        self, store: FeatureStore | TrainingStores, train: StoredClips, probing: Probing, max_videos: int = 2000
    ) -> None:
        labels, groups = store.labels(), store.groups()
        labelled = sorted((i for i in train.video_ids if i in labels), key=lambda i: uniform_hash(f"monitor\0{i}"))
        labelled = labelled[:max_videos]
        self._probing = probing
        is_possible = all(len({of_video[i] for i in labelled}) > 1 for of_video in (labels, groups))
        self._clips = train.read_videos(sorted(labelled)) if is_possible else None
        if self._clips is not None:
            self._labels = _numbered([labels[video_id] for video_id in self._clips.video_ids])
            self._groups = _numbered([groups[video_id] for video_id in self._clips.video_ids])

    def __call__(self, aggregator: Aggregator) -> dict[str, float]:
        """`monitor_knn_top1` of the aggregator; empty with fewer than two classes, or fewer than two groups."""
        if self._clips is None:
            return {}
        videos = _representations(self._clips, aggregator)
        return {"monitor_knn_top1": knn_top1_within(videos, self._labels, self._groups, self._probing)}


def _numbered(names: Sequence[str]) -> Tensor:
    """The number of each name among the different ones, which are sorted, int64 (names,)."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([numbers[name] for name in names])


def _representations(clips: ClipFeatures, aggregator: Aggregator) -> Tensor:
    """The representation of each video, float32 (videos, d)."""
    features = torch.from_numpy(clips.features)
    positions = normalised_positions(torch.from_numpy(clips.positions))

    def of_videos(rows: Tensor) -> Tensor:
        tokens = set_tokens(aggregator, features[rows], positions[rows])
        return clip_representations(features[rows], tokens).mean(1)

    return by_parts(len(features), of_videos, None, videos_per_block(ROWS_AT_ONCE, features.shape[1]))


def halves_found(first: Tensor, second: Tensor) -> Tensor:
    """Whether the set token of half of a video's clips is nearest to that of its other half, bool (videos,).

    `first` and `second` (videos, E) are the set tokens of the halves of all videos. Needs no labels, and is comparable
    across set sizes and mask ratios.
    """
    others = F.normalize(second, dim=1).T
    nearest = torch.cat([(part @ others).argmax(1) for part in F.normalize(first, dim=1).split(_VIDEOS_AT_ONCE)])
    return nearest == torch.arange(len(first))
