"""A feature store to a description of its contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.clips import MODES
from scale_ray.console import Console, Result
from scale_ray.store import Failure, FeatureStore, compact, repair, unreadable, verify, write_lease

if TYPE_CHECKING:
    import pandas as pd

# Entries of a fingerprint that only some backbones have.
_DETAILS = ("weights_copy", "time_embeddings")


@dataclass(frozen=True)
class StoreResult(Result):
    """What a feature store holds.

    `stored` counts the videos of each mode, `splits` those of each subset of each split, `labels` those of each
    class. `merged`: the number of shards before and after they were merged; `errors`: what a verification found,
    None if nobody asked for one.
    """

    location: str
    num_videos: int
    num_shards: int
    size_bytes: int
    fingerprint: Mapping[str, Any]
    feature_width: int | None
    stored: Mapping[str, int]
    splits: Mapping[str, int]
    labels: Mapping[str, int]
    failures: Sequence[Failure]
    merged: tuple[int, int] | None = None
    errors: Sequence[str] | None = None

    def lines(self) -> list[str]:
        fingerprint = self.fingerprint
        details = [f"{name.replace('_', ' ')} {fingerprint[name]}" for name in _DETAILS if name in fingerprint]
        lines = [
            f"{self.location}: {self.num_videos} videos in {self.num_shards} shards, {self.size_bytes / 2**20:.1f} MiB",
            f"  backbone  {fingerprint['backbone']}, weights {fingerprint['weights']}, "
            + "".join(f"{detail}, " for detail in details)
            + f"{_pixels(fingerprint)}, features {self.feature_width or 0} wide",
            "  clips     "
            + ", ".join(f"{count} videos in mode {mode}" for mode, count in self.stored.items() if count),
            "  splits    " + ", ".join(f"{name} {count}" for name, count in sorted(self.splits.items())),
            f"  labels    {len(self.labels)} classes" if self.labels else "  labels    none",
            f"  failures  {len(self.failures)}",
            *(f"    {entry.video_id} ({entry.stage}: {entry.reason})" for entry in self.failures),
        ]
        if self.merged is not None:
            lines.append(f"  compacted {self.merged[0]} shards into {self.merged[1]}")
        if self.errors is not None:
            lines += [f"  wrong     {error}" for error in self.errors] or [
                f"  verified  {self.num_shards} shards, no errors"
            ]
        return lines

    def values(self) -> dict[str, Any]:
        return {
            "videos": self.num_videos,
            "shards": self.num_shards,
            "size_bytes": self.size_bytes,
            "fingerprint": self.fingerprint,
            "feature_width": self.feature_width,
            "done": dict(self.stored),
            "splits": dict(self.splits),
            "labels": dict(self.labels),
            "failures": [vars(entry) for entry in self.failures],
            **({} if self.errors is None else {"wrong": list(self.errors)}),
        }

    def to_pandas(self) -> pd.DataFrame:
        """A row per video: the store's table of videos."""
        return FeatureStore(self.location).videos().to_pandas()


def store(location: str, *, verify_shards: bool = False, compact_shards: bool = False, console: Console) -> StoreResult:
    """Describe a feature store; with `compact_shards` merge its small shards first, with `verify_shards` read all.

    Raises
    ------
    UserError
        If there is no store, or somebody else is writing to one that is to be compacted.
    """
    features = FeatureStore(location)
    merged = None
    if compact_shards:
        with write_lease(features.location, console):
            repair(features)
            merged = compact(features)
    errors = None
    if verify_shards:
        errors = verify(features)
        features.leave_out(unreadable(features))  # they are reported; the others are described
    videos = features.videos()
    subsets = Counter(f"{name} {subset}" for splits in videos["splits"].to_pylist() for name, subset in splits)
    return StoreResult(
        location=location,
        num_videos=len(videos),
        num_shards=len(features.parts("features/part-")),
        size_bytes=features.size_bytes(),
        fingerprint=features.fingerprint,
        feature_width=features.feature_width(),
        stored={mode: len(features.stored_ids(mode)) for mode in MODES},
        splits=subsets,
        labels=Counter(features.labels().values()),
        failures=features.failures(),
        merged=merged,
        errors=errors,
    )


def _pixels(fingerprint: Mapping[str, Any]) -> str:
    """The size of the backbone's input, and that in mode eval if it is another one; for two backbones those of both."""
    if joined := fingerprint.get("joined"):
        return " and ".join(map(_pixels, joined))
    of_eval = fingerprint.get("eval_input_px")
    return f"{fingerprint.get('input_px')} px" + (f" ({of_eval} px in mode eval)" if of_eval else "")
