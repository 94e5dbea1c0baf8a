"""The features of two backbones to one store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.clips import MODES
from scale_ray.console import Console, Result
from scale_ray.errors import UserError
from scale_ray.store import FeatureStore, join_features, joined_fingerprint, repair, write_lease

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class JoinResult(Result):
    """A store of joined features: where it is, what it holds, and how many videos only one of the two stores has."""

    location: str
    backbone: str
    feature_width: int
    num_videos: int
    left_out: int

    def lines(self) -> list[str]:
        left_out = f"; {self.left_out} that only one store has are left out" if self.left_out else ""
        return [
            f"{self.location}: {self.backbone}, features {self.feature_width} wide, {self.num_videos} videos{left_out}"
        ]

    def values(self) -> dict[str, Any]:
        return dict(vars(self))

    def to_pandas(self) -> pd.DataFrame:
        """A row per video: the store's table of videos."""
        return FeatureStore(self.location).videos().to_pandas()


def join(first: str, second: str, store: str, *, console: Console) -> JoinResult:
    """Join the features of two backbones: each clip's feature of `first`, followed by that of `second`.

    Both stores must hold the same clips, as those have that one `extract` with two backbones writes. Videos that the
    new store holds already are not joined again.

    Raises
    ------
    UserError
        If the clips differ, or the new store holds other features.
    """
    stores = FeatureStore(first), FeatureStore(second)
    fingerprint = joined_fingerprint(*stores)
    total = sum(len(stores[0].stored_ids(mode) & stores[1].stored_ids(mode)) for mode in MODES)
    if not total:
        raise UserError(f"{second}: expected features of the videos of {first}, found none")
    joined = FeatureStore.create(store, fingerprint)
    with write_lease(joined.location, console), console.progress("join", total, "videos") as progress:
        repair(joined)
        left_out = join_features(*stores, joined, progress.to)
    width = joined.feature_width()
    assert width is not None, "a store of joined videos has shards"
    num_videos = len(set().union(*(joined.stored_ids(mode) for mode in MODES)))
    return JoinResult(joined.location, str(joined.fingerprint["backbone"]), width, num_videos, left_out)
