"""The two sides of a probe: videos to fit on and videos to test on, which have nothing in common.

What is fitted or chosen is handed a `ProbeDataset` of the training split and nothing else; the test side is opened
when all is settled, and then only scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scale_ray.clip_sets import ResidentClips, cache_of, normalised_positions, opened_source, video_keys
from scale_ray.config import Ingest
from scale_ray.errors import UserError
from scale_ray.hashing import uniform_hash
from scale_ray.probes.targets import Targets
from scale_ray.store import GEOMETRY, FeatureStore, StoredClips


@dataclass(frozen=True)
class ProbeDataset:
    """Videos with their clips, targets and groups, in the order of their ids.

    `features` (videos, N, D), in memory or mapped from disk, as they are stored; `positions` (videos, N, 7)
    normalised; `geometry` (videos, N, 18): positions as measured, normalised, and the video's size, length and
    frame rate; `targets` as `Targets.tensor` gives them; `keys` (videos,) the videos' part in every draw. `scratch`:
    the folder for what is computed of all videos, where it is not to be held in memory.
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
    """Training and test side of one split, and what is told of their videos.

    `fit` and `choice` are rows of `train`: a probe's settings are fitted on the first and compared on the
    second, which are official validation videos where there are some, else a part of the training split.
    Then the probe is fitted once more on `refit`, all of the training split.
    """

    split: str
    targets: Targets
    train: ProbeDataset
    test: ProbeDataset
    is_training: Tensor

    def parts(self, share: float, seed: int) -> tuple[Tensor, Tensor]:
        """Rows of `train` to fit on, and to choose by; the second is empty where there is one group alone."""
        if not bool(self.is_training.all()):
            return self.is_training.nonzero()[:, 0], (~self.is_training).nonzero()[:, 0]
        order = sorted(set(self.train.groups), key=lambda group: uniform_hash(f"choice {seed}\0{group}"))
        # By number of groups, not by their hashes alone: of ten groups none might be drawn.
        chosen = set(order[: min(round(share * len(order)) or 1, len(order) - 1)])
        choosing = torch.tensor([group in chosen for group in self.train.groups])
        return (~choosing).nonzero()[:, 0], choosing.nonzero()[:, 0]

    @property
    def refit(self) -> Tensor:
        """Rows of `train` that are of the training split."""
        return self.is_training.nonzero()[:, 0]


def load_probe_split(store: FeatureStore, targets: Targets, split: str, ingest: Ingest) -> ProbeSplit:
    """Both sides of a split: `train` clips of training and validation videos, `eval` clips of test videos.

    Raises
    ------
    UserError
        Where one side has no videos with targets, or where a video or a group is on both.
    """
    sides, groups = store.splits(split), store.groups()
    known = {video_id for video_id in sides if video_id in targets.of}
    sizes = store.geometries()

    def read(mode: str, of: Sequence[str], told: str) -> ProbeDataset:
        stored = StoredClips(store, mode, {video_id for video_id in known if sides[video_id] in of})
        if not len(stored):
            raise UserError(f"expected labelled {told} videos with {mode} clips, found none in {store.location}")
        if ingest.ingest == "stream":
            raise UserError("ingest: expected auto, memory or disk for probes, found stream")
        source = opened_source(stored, ingest, torch.device("cpu"))
        if not isinstance(source, ResidentClips):
            raise UserError(
                f"cache: expected room for {stored.num_bytes / 2**30:.1f} GiB of features in memory or on disk, "
                "found none; give another --cache"
            )
        measured = torch.from_numpy(stored.read_positions())
        geometry = torch.tensor([[float(sizes[i][name]) for name in GEOMETRY.names] for i in stored.video_ids])
        spread = geometry.view(len(stored), 1, len(GEOMETRY)).expand(-1, stored.num_clips, -1)
        return ProbeDataset(
            stored.video_ids,
            [groups[video_id] for video_id in stored.video_ids],
            targets.tensor(stored.video_ids),
            source.features,
            source.positions,
            torch.cat([measured, normalised_positions(measured), spread], 2),
            video_keys(stored.video_ids),
            str(cache_of(ingest)) if source.ingest_mode == "disk" else None,
        )

    train, test = read("train", ("train", "validation"), "training"), read("eval", ("test",), "test")
    check_no_leakage(train, test, store.location)
    is_training = torch.tensor([sides[video_id] == "train" for video_id in train.video_ids])
    if not bool(is_training.any()):
        raise UserError(f"expected labelled training videos, found none in {store.location}")
    return ProbeSplit(split, targets, train, test, is_training)


def check_no_leakage(train: ProbeDataset, test: ProbeDataset, place: str) -> None:
    """Raise a UserError where a video or a group is on both sides."""
    for what, ours, theirs in (("video", train.video_ids, test.video_ids), ("group", train.groups, test.groups)):
        both = sorted(set(ours) & set(theirs))
        if both:
            raise UserError(
                f"{place}: expected no {what} on both sides of the split, found {len(both)}, such as {both[0]!r}"
            )
