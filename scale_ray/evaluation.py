"""A store and an aggregator to a table: every representation, every probe, beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scale_ray.aggregator import Aggregator
from scale_ray.config import Probing
from scale_ray.errors import UserError
from scale_ray.probes import halves_top1, knn_top1, knn_top1_within, linear_top1
from scale_ray.representation import clip_representations, set_tokens
from scale_ray.sets import normalised_positions, video_keys
from scale_ray.splits import hash_share
from scale_ray.store import FeatureStore
from scale_ray.stored_clips import ClipFeatures, StoredClips, read_clips


@dataclass(frozen=True)
class ProbeRow:
    """One line of the table; both top-1 are fractions in [0, 1] of the test videos."""

    representation: str
    knn_top1: float
    linear_top1: float


@dataclass(frozen=True)
class ProbeTable:
    rows: list[ProbeRow]
    num_train_videos: int
    num_test_videos: int
    num_classes: int
    chance: float
    """Share of the most frequent class of the training videos in the test videos."""

    def lines(self) -> list[str]:
        """The table as text."""
        head = f"{'representation':<37}{'k-NN top-1':>12}{'linear top-1':>14}"
        body = [f"{row.representation:<37}{row.knn_top1:>12.3f}{row.linear_top1:>14.3f}" for row in self.rows]
        return [
            head,
            "-" * len(head),
            *body,
            f"{self.num_train_videos} training and {self.num_test_videos} test videos, {self.num_classes} classes; "
            f"always the most frequent class: {self.chance:.3f}",
        ]


@dataclass(frozen=True)
class _Part:
    """The videos of one side: raw features, normalised positions, geometry alone, labels, keys."""

    features: Tensor
    positions: Tensor
    geometry: Tensor
    labels: Tensor
    keys: Tensor


BACKBONE_ALONE = "backbone feature alone"
RANDOM_AGGREGATOR = "with random aggregator"
TRAINED_AGGREGATOR = "with trained aggregator"
SET_TOKEN_ALONE = "trained aggregator's set token alone"
GEOMETRY_ALONE = "position and geometry alone"
NUM_REPRESENTATIONS = 5


def probe_table(
    store: FeatureStore,
    aggregator: Aggregator,
    probing: Probing,
    progress: Callable[[int, str], None] = lambda _count, _name: None,
) -> ProbeTable:
    """k-NN and linear top-1 of every representation, from the clips that the store holds.

    Fitted on the `train` clips of the training videos; the test videos are seen through their `eval`
    clips and only scored. `progress` is told how many representations are done, and the last one's name.

    Raises
    ------
    UserError
        Where labels, training or test videos are missing.
    """
    labels = store.labels()
    classes = sorted(set(labels.values()))
    if len(classes) < 2:
        raise UserError(f"expected labelled videos of at least 2 classes, found {len(classes)} in {store.location}")
    train = _part(read_clips(store, "train", "train"), store, labels, classes)
    test = _part(read_clips(store, "eval", "test"), store, labels, classes)
    for side, part in (("training", train), ("test", test)):
        if not len(part.labels):
            raise UserError(f"expected labelled {side} videos, found none in {store.location}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(probing.probe_seed)
        untrained = Aggregator(aggregator.feature_width, aggregator.options).eval()
    kinds: list[tuple[str, Aggregator | None, bool]] = [
        (GEOMETRY_ALONE, None, False),
        (BACKBONE_ALONE, None, True),
        (RANDOM_AGGREGATOR, untrained, True),
        (TRAINED_AGGREGATOR, aggregator, True),
        (SET_TOKEN_ALONE, aggregator, False),
    ]
    rows = []
    for name, using, with_features in kinds:
        rows.append(_probe(name, train, test, using, with_features, probing))
        progress(len(rows), name)
    assert len(rows) == NUM_REPRESENTATIONS
    frequent = int(train.labels.mode().values)
    chance = float((test.labels == frequent).float().mean())
    return ProbeTable(rows, len(train.labels), len(test.labels), len(classes), chance)


def require_width(store: FeatureStore, aggregator: Aggregator) -> None:
    """Refuse an aggregator that was made for features of another width or backbone."""
    width = store.feature_width()
    if width is not None and width != aggregator.feature_width:
        raise UserError(
            f"checkpoint: expected an aggregator for features of width {width} (backbone "
            f"{store.fingerprint['backbone']}), found one of width {aggregator.feature_width}"
            + (f" (backbone {aggregator.origin['backbone']})" if "backbone" in aggregator.origin else "")
        )
    for key in ("backbone", "weights"):
        ours, theirs = store.fingerprint[key], aggregator.origin.get(key, store.fingerprint[key])
        if ours != theirs:
            raise UserError(f"checkpoint: expected an aggregator for {key} {ours!r}, found one for {theirs!r}")


def validation_monitor(
    aggregator: Aggregator, train: ClipFeatures, validation: ClipFeatures, labels: dict[str, str], probing: Probing
) -> tuple[str, float]:
    """What ranks settings without touching the test split: its name, and its value in [0, 1].

    k-NN top-1 of the validation videos where they are labelled; otherwise how often a video's set token
    finds that of the other half of its clips.
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
    """k-NN top-1 among labelled training videos, as a training goes on; groups are kept apart.

    At most `most` of the videos, drawn by their ids.
    """

    def __init__(self, store: FeatureStore, train: StoredClips, probing: Probing, most: int = 2000) -> None:
        labels, groups = store.labels(), store.groups()
        labelled = sorted((i for i in train.video_ids if i in labels), key=lambda i: hash_share(f"monitor\0{i}"))[:most]
        self._classes = sorted({labels[video_id] for video_id in labelled})
        self._labels, self._probing = labels, probing
        self._clips = StoredClips(store, train.mode, set(labelled)).read() if len(self._classes) > 1 else None
        if self._clips is not None:
            of_clips = [groups[video_id] for video_id in self._clips.video_ids]
            self._groups = torch.tensor([sorted(set(of_clips)).index(group) for group in of_clips])

    def __call__(self, aggregator: Aggregator) -> dict[str, float]:
        """`monitor_knn_top1`; nothing where there are no labels of two classes."""
        if self._clips is None:
            return {}
        videos, labels = _labelled_representations(self._clips, self._labels, self._classes, aggregator)
        return {"monitor_knn_top1": knn_top1_within(videos, labels, self._groups, self._probing)}


def _labelled_representations(
    clips: ClipFeatures, labels: dict[str, str], classes: Sequence[str], aggregator: Aggregator
) -> tuple[Tensor, Tensor]:
    known = clips.subset([row for row, video_id in enumerate(clips.video_ids) if video_id in labels])
    features = torch.from_numpy(known.features)
    positions = normalised_positions(torch.from_numpy(known.positions))
    whole = clip_representations(features, set_tokens(aggregator, features, positions)).mean(1)
    return whole, torch.tensor([classes.index(labels[video_id]) for video_id in known.video_ids])


def _part(clips: ClipFeatures, store: FeatureStore, labels: dict[str, str], classes: Sequence[str]) -> _Part:
    known = clips.subset([row for row, video_id in enumerate(clips.video_ids) if video_id in labels])
    positions = torch.from_numpy(known.positions)
    sizes = {row["video_id"]: row for row in store.videos().to_pylist()}
    geometry = torch.tensor(
        [[float(sizes[i][name]) for name in ("height_px", "width_px", "duration_s", "fps")] for i in known.video_ids]
    ).view(-1, 1, 4)
    normalised = normalised_positions(positions)
    return _Part(
        torch.from_numpy(known.features).float(),
        normalised,
        torch.cat([positions, normalised, geometry.expand(-1, positions.shape[1], -1)], 2),
        torch.tensor([classes.index(labels[i]) for i in known.video_ids], dtype=torch.int64),
        video_keys(known.video_ids),
    )


def _probe(
    name: str, train: _Part, test: _Part, using: Aggregator | None, with_features: bool, probing: Probing
) -> ProbeRow:
    def represent(part: _Part, chosen: Tensor) -> Tensor:
        at = (torch.arange(len(chosen))[:, None], chosen)
        if using is None:
            return part.features[at] if with_features else part.geometry[at]
        tokens = set_tokens(using, part.features[at], part.positions[at])
        features = part.features[at] if with_features else part.features[at][..., :0]
        return clip_representations(features, tokens)

    def whole(part: _Part) -> Tensor:
        videos, clips = part.features.shape[:2]
        return represent(part, torch.arange(clips).expand(videos, -1))

    test_VNd = whole(test)
    num_clips = train.features.shape[1]
    return ProbeRow(
        name,
        knn_top1(whole(train).mean(1), train.labels, test_VNd.mean(1), test.labels, probing),
        linear_top1(partial(represent, train), train.keys, num_clips, train.labels, test_VNd, test.labels, probing),
    )
