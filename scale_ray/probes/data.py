"""The training and test videos of a split, which share no video and no group.

Fitting and selection get only the `ProbeDataset` of the training videos. The test videos are used at the end, for
scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scale_ray.aggregator import normalised_positions
from scale_ray.clip_sets import ResidentClips, cache_folder, open_source, video_keys
from scale_ray.config import Ingest
from scale_ray.errors import UserError
from scale_ray.hashing import uniform_hash
from scale_ray.probes.targets import Targets
from scale_ray.store import GEOMETRY, FeatureStore, StoredClips, open_clips


@dataclass(frozen=True)
class ProbeDataset:
    """Videos with their clips, targets and groups, in the order of their ids.

    `features` float16 (videos, N, D), in memory or mapped from disk; `positions` (videos, N, 7), normalised;
    `geometry` (videos, N, 18): stored positions, normalised positions, and size, duration and frame rate of the video;
    `targets` as given by `Targets.tensor`; `keys` (videos,) identify the videos in random draws. `scratch` is the
    folder for what is computed of all videos, or None to keep it in memory.
    """

    video_ids: list[str]
    groups: list[str]
    targets: Tensor
    features: Tensor
    positions: Tensor
    geometry: Tensor
    keys: Tensor
    scratch: str | None = None

    def __len__(self) -> int:
        return len(self.video_ids)

    @property
    def num_clips(self) -> int:
        return self.features.shape[1]


@dataclass(frozen=True)
class ProbeSplit:
    """One split: its training videos (with the validation videos), its test videos, and their targets.

    `is_training` bool (training and validation videos,) is False for rows of `train` that are validation videos.
    """

    name: str
    targets: Targets
    train: ProbeDataset
    test: ProbeDataset
    is_training: Tensor

    def fit_and_selection_rows(self, selection_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Rows of `train` to fit the settings of a probe on, and rows to compare the settings on.

        The latter are the official validation videos, if there are any; otherwise about `selection_fraction` of the
        groups of the training videos, but none if there is only one group.
        """
        if not bool(self.is_training.all()):
            return self.is_training.nonzero()[:, 0], (~self.is_training).nonzero()[:, 0]
        order = sorted(set(self.train.groups), key=lambda group: uniform_hash(f"choice {seed}\0{group}"))
        # A fixed number of groups instead of a threshold on their hashes, which might select none of a few groups.
        selected = set(order[: min(round(selection_fraction * len(order)) or 1, len(order) - 1)])
        is_selected = torch.tensor([group in selected for group in self.train.groups])
        return (~is_selected).nonzero()[:, 0], is_selected.nonzero()[:, 0]

    @property
    def refit_rows(self) -> Tensor:
        """Rows of `train` to fit a probe with its selected setting on: all training videos, no validation videos."""
        return self.is_training.nonzero()[:, 0]


def load_probe_split(
    store: FeatureStore, targets: Targets, split: str, ingest: Ingest, mode: str = "train"
) -> ProbeSplit:
    """Load a split: clips of a mode of its training and validation videos, `eval` clips of its test videos.

    Raises
    ------
    UserError
        If there are no training or no test videos with targets, or if a video or a group is in both.
    """
    subsets = {video_id: subset for video_id, subset in store.splits(split).items() if video_id in targets.values}
    groups, geometries = store.groups(), store.geometries()

    def load(mode: str, included: Sequence[str], description: str) -> ProbeDataset:
        stored = open_clips(store, mode, {video_id for video_id, subset in subsets.items() if subset in included})
        ids = stored.video_ids
        if not ids:
            raise UserError(f"expected labelled {description} videos with {mode} clips, found none in {store.location}")
        source = _resident_clips(stored, ingest)
        positions = torch.from_numpy(stored.read_positions())
        geometry = torch.tensor([[float(geometries[i][name]) for name in GEOMETRY.names] for i in ids])
        per_clip = geometry.view(len(ids), 1, len(GEOMETRY)).expand(-1, stored.num_clips, -1)
        return ProbeDataset(
            ids,
            [groups[video_id] for video_id in ids],
            targets.tensor(ids),
            source.features,
            source.positions,
            torch.cat([positions, normalised_positions(positions), per_clip], 2),
            video_keys(ids),
            str(cache_folder(ingest)) if source.ingest_mode == "disk" else None,
        )

    train, test = load(mode, ("train", "validation"), "training"), load("eval", ("test",), "test")
    check_no_leakage(train, test, store.location)
    is_training = torch.tensor([subsets[video_id] == "train" for video_id in train.video_ids])
    if not bool(is_training.any()):
        raise UserError(f"expected labelled training videos, found none in {store.location}")
    return ProbeSplit(split, targets, train, test, is_training)


def _resident_clips(stored: StoredClips, ingest: Ingest) -> ResidentClips:
    if ingest.ingest == "stream":
        raise UserError("ingest: expected auto, memory or disk for probes, found stream")
    source = open_source(stored, ingest, torch.device("cpu"))
    if not isinstance(source, ResidentClips):
        raise UserError(
            f"cache: expected {stored.num_bytes / 2**30:.1f} GiB of free memory or disk space for features, found "
            "less; give another --cache"
        )
    return source


def check_no_leakage(train: ProbeDataset, test: ProbeDataset, location: str) -> None:
    """Raise a UserError if a video or a group of the store at `location` is in both datasets."""
    for kind, ours, theirs in (("video", train.video_ids, test.video_ids), ("group", train.groups, test.groups)):
        shared = sorted(set(ours) & set(theirs))
        if shared:
            raise UserError(
                f"{location}: expected no {kind} in both training and test videos, found {len(shared)}, such as "
                f"{shared[0]!r}"
            )
