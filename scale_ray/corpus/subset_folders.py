"""Folders that give the splits by their names: `train/CLASS/...`, `val/CLASS/...`, `test/CLASS/...`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from scale_ray.corpus.layouts import VideoAnnotation, video_ids, with_labelled_tests
from scale_ray.corpus.splits import DEFAULT_SPLIT, SUBSETS, subset_of


def read_subset_folders(ids: Sequence[str]) -> tuple[dict[str, VideoAnnotation], str] | None:
    """Read a folder of the form `train/CLASS/...`, `val/CLASS/...`, `test/CLASS/...`, which has no lists.

    Returns the annotations of all files and a note on their splits; None unless every folder at the top that holds
    videos is named as a subset, and there are classes in the training folder and in at least one of the others. As in
    the official layouts, the validation videos are the test videos if no test video has a label.
    """
    videos = video_ids(ids) or list(ids)
    subset_of_top = {top: subset_of(top) for top in sorted({video_id.partition("/")[0] for video_id in videos})}
    with_classes = {subset_of_top[video_id.partition("/")[0]] for video_id in videos if video_id.count("/") > 1}
    if None in subset_of_top.values() or "train" not in with_classes or len(with_classes) < 2:
        return None
    tops = sorted(subset_of_top, key=lambda top: SUBSETS.index(str(subset_of_top[top])))
    given = {video_id: _annotation_in_subset(video_id) for video_id in ids}
    annotations = with_labelled_tests(given)
    names = f"{', '.join(tops[:-1])} and {tops[-1]}"
    note = f"splits as given by the folders {names}"
    if annotations != given:
        note += "; the validation videos are the test videos, because no other test video has a label"
    return annotations, note


def _annotation_in_subset(video_id: str) -> VideoAnnotation:
    """The annotation of `SUBSET/CLASS/NAME`; of a file outside the folders of the subsets, without a split."""
    top, _, rest = video_id.partition("/")
    subset = subset_of(top)
    if not rest or subset is None:
        return VideoAnnotation(posixpath.dirname(video_id) or None)
    return VideoAnnotation(posixpath.dirname(rest) or None, splits={DEFAULT_SPLIT: subset})


def notes_on_classes(labels: Iterable[str | None]) -> list[str]:
    """A note if folders that are taken as classes are named as subsets: the split that is drawn ignores them."""
    parts = {part for label in labels if label for part in label.split("/")}
    names = sorted(filter(subset_of, parts))
    found = f"found folders called {', '.join(names)}, which are read as parts of class names; "
    return [found + "splits are read from train/CLASS/... beside val/CLASS/... or test/CLASS/..."] if names else []
