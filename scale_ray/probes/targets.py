"""Targets of the probes: what they predict for a video, a class, several labels or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from scale_ray.errors import UserError
from scale_ray.store import FeatureStore

CLASSES, MULTILABEL, NUMBERS = "classes", "multilabel", "numbers"


@dataclass(frozen=True)
class Targets:
    """The known targets of a store's videos.

    `kind` is `classes` (one label per video), `multilabel` (any number of labels per video) or `numbers`
    (regression). `names` are the sorted labels, or the name of the column. `values` holds the label, labels or number
    of each video, by its id.
    """

    kind: str
    names: list[str]
    values: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Number of outputs of a probe: one score per label, or one number."""
        return 1 if self.kind == NUMBERS else len(self.names)

    def tensor(self, video_ids: Sequence[str]) -> Tensor:
        """Classes as int64 (videos,), several labels as float32 0 or 1 (videos, K), numbers as float32 (videos, 1)."""
        if self.kind == NUMBERS:
            return torch.tensor([[float(self.values[i])] for i in video_ids], dtype=torch.float32).view(-1, 1)
        indices = {name: index for index, name in enumerate(self.names)}
        if self.kind == CLASSES:
            return torch.tensor([indices[self.values[i]] for i in video_ids], dtype=torch.int64)
        targets = torch.zeros(len(video_ids), len(self.names))
        for row, video_id in enumerate(video_ids):
            targets[row, [indices[label] for label in self.values[video_id]]] = 1.0
        return targets

    def dense(self, targets: Tensor) -> Tensor:
        """Targets as given by `tensor`, as one float32 row per video: classes one-hot, others unchanged."""
        if self.kind == CLASSES:
            return torch.nn.functional.one_hot(targets, len(self.names)).float()
        return targets


def read_targets(store: FeatureStore, choice: str = "auto") -> Targets:
    """Read the targets from the column `choice`: `label`, `labels`, `target` or an extra column of the manifest.

    `auto` takes the first of label, labels and target that has a value for any video. A column of strings gives
    classes, a column of lists several labels, a column of numbers a regression.

    Raises
    ------
    UserError
        If there is no such column, or if it has fewer than two different values.
    """
    videos = store.videos()
    if choice == "auto":
        choice = next((n for n in ("label", "labels", "target") if videos[n].null_count < len(videos)), "label")
    if choice not in videos.column_names:
        raise UserError(f"target: expected a column of {', '.join(videos.column_names)}, found {choice!r}")
    pairs = zip(videos["video_id"].to_pylist(), videos[choice].to_pylist(), strict=True)
    # A null, an empty string (a missing value of a CSV file) and NaN are no targets.
    values = {video_id: value for video_id, value in pairs if value is not None and value != "" and value == value}
    type_ = videos.schema.field(choice).type
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return _checked(Targets(NUMBERS, [choice], values), len(set(values.values())), choice, store)
    if any(is_list(type_) for is_list in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        values = {video_id: [label for label in labels if label is not None] for video_id, labels in values.items()}
        names = sorted({label for labels in values.values() for label in labels})
        return _checked(Targets(MULTILABEL, names, values), len(names), choice, store)
    values = {video_id: str(value) for video_id, value in values.items()}
    names = sorted(set(values.values()))
    return _checked(Targets(CLASSES, names, values), len(names), choice, store)


def _checked(targets: Targets, num_different: int, choice: str, store: FeatureStore) -> Targets:
    """The targets, or a UserError if they have fewer than two different values."""
    if num_different < 2:
        subject = {CLASSES: "labelled videos of", MULTILABEL: "videos with labels of"}.get(targets.kind, "numbers of")
        unit = "values" if targets.kind == NUMBERS else "classes"
        raise UserError(
            f"expected {subject} at least 2 {unit} in column {choice}, found {num_different} in {store.location}"
        )
    return targets
