"""What the probes are to tell of a video: a class, several labels, or a number."""

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

    `kind` is `classes` (a label each), `multilabel` (any number of labels each) or `numbers` (regression);
    `names` are the labels, in order, or the column's name. `of` holds each video's label, labels or number.
    """

    kind: str
    names: list[str]
    of: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Outputs of a probe: a score a label, or one number."""
        return 1 if self.kind == NUMBERS else len(self.names)

    def tensor(self, video_ids: Sequence[str]) -> Tensor:
        """Classes as int64 (videos,), several labels as 0 and 1, float32 (videos, K), numbers float32 (videos, 1)."""
        if self.kind == NUMBERS:
            return torch.tensor([[float(self.of[i])] for i in video_ids], dtype=torch.float32).view(-1, 1)
        places = {name: place for place, name in enumerate(self.names)}
        if self.kind == CLASSES:
            return torch.tensor([places[self.of[i]] for i in video_ids], dtype=torch.int64)
        values = torch.zeros(len(video_ids), len(self.names))
        for row, video_id in enumerate(video_ids):
            values[row, [places[label] for label in self.of[video_id]]] = 1.0
        return values

    def dense(self, values: Tensor) -> Tensor:
        """Targets as a float32 row a video: of classes one 1 among zeros."""
        if self.kind == CLASSES:
            return torch.nn.functional.one_hot(values, len(self.names)).float()
        return values


def read_targets(store: FeatureStore, choice: str = "auto") -> Targets:
    """The targets that `choice` names: `label`, `labels`, `target` or a column of the manifest's own.

    `auto` takes the first of label, labels and target that any video has. A column of texts gives classes,
    of lists several labels, of numbers a regression.

    Raises
    ------
    UserError
        Where there is no such column, or nothing in it to tell apart.
    """
    videos = store.videos()
    if choice == "auto":
        choice = next((n for n in ("label", "labels", "target") if videos[n].null_count < len(videos)), "label")
    if choice not in videos.column_names:
        raise UserError(f"target: expected a column of {', '.join(videos.column_names)}, found {choice!r}")
    pairs = zip(videos["video_id"].to_pylist(), videos[choice].to_pylist(), strict=True)
    # Of no worth as a target: nothing, an empty text (as of a CSV file), a number that is none.
    of = {video_id: value for video_id, value in pairs if value is not None and value != "" and value == value}
    type_ = videos.schema.field(choice).type
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return _differing(Targets(NUMBERS, [choice], of), sorted(set(of.values())), choice, store)
    if any(is_of(type_) for is_of in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        of = {video_id: [label for label in labels if label is not None] for video_id, labels in of.items()}
        names = sorted({label for labels in of.values() for label in labels})
        return _differing(Targets(MULTILABEL, names, of), names, choice, store)
    of = {video_id: str(value) for video_id, value in of.items()}
    names = sorted(set(of.values()))
    return _differing(Targets(CLASSES, names, of), names, choice, store)


def _differing(targets: Targets, values: Sequence[Any], choice: str, store: FeatureStore) -> Targets:
    if len(values) < 2:
        what = {CLASSES: "labelled videos of", MULTILABEL: "videos with labels of"}.get(targets.kind, "numbers of")
        unit = "values" if targets.kind == NUMBERS else "classes"
        raise UserError(
            f"expected {what} at least 2 {unit} in column {choice}, found {len(values)} in {store.location}"
        )
    return targets
