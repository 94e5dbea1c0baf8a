"""The official folders and lists of public data sets: labels, groups and splits as they were published.

Each layout has a function from the texts of its lists to the annotations of the videos. Finding the lists
and recognising the layout is the task of `annotations`.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from scale_ray.corpus.splits import DEFAULT_SPLIT, SUBSETS, subset_of
from scale_ray.errors import UserError

_Key = TypeVar("_Key", bound=Hashable)
# What a layout counts as a video: lists, archives and read-me files lie in the same folders.
_VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)


def video_ids(ids: Sequence[str]) -> list[str]:
    """The files among these that a layout counts as videos."""
    return [video_id for video_id in ids if posixpath.splitext(video_id)[1].lower() in _VIDEO_SUFFIXES]


@dataclass(frozen=True)
class VideoAnnotation:
    """The official annotation of one video; `splits`: split name -> train, validation or test."""

    label: str | None = None
    group: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Annotations:
    """The official annotations of a corpus, by `video_id`.

    `num_listed` videos of the corpus are in the lists. `num_absent` videos are in the lists but not in the
    corpus. `num_left_out` videos are left out, because this layout cannot annotate a video that is in no list.
    """

    videos: dict[str, VideoAnnotation]
    num_listed: int
    num_absent: int
    num_left_out: int


@dataclass(frozen=True)
class Layout:
    """How to recognise and read the lists of one data set.

    `folders` are the usual names of the folder of the lists, `list_names` is a regular expression for the names
    of the lists, `example` is one such name (for messages). `recognises` tests the text of a list.
    `read(video ids, texts by list name)` returns the annotations, and raises a UserError if a list is damaged.
    """

    title: str
    folders: tuple[str, ...]
    list_names: str
    example: str
    read: Callable[[Sequence[str], Mapping[str, str]], Annotations]
    recognises: Callable[[str], bool] = bool


def read_ucf101(ids: Sequence[str], texts: Mapping[str, str]) -> Annotations:
    """Read the lists of UCF-101.

    Videos: `UCF-101/CLASS/v_CLASS_gNN_cNN.avi`. Lists, in `ucfTrainTestlist/`: `trainlist01.txt` to `03` (lines
    `CLASS/v_CLASS_gNN_cNN.avi 1`) and `testlist01.txt` to `03` (without the number).

    Videos are matched by file name alone, since one class is spelled differently in folder and file names:
    `HandstandPushups/v_HandStandPushups_...`. The group is `v_CLASS_gNN`: the clips cut from one longer video.
    """
    splits: dict[Hashable, dict[str, str]] = defaultdict(dict)
    labels: dict[Hashable, str] = {}
    for name, text in texts.items():
        subset, number = re.findall(r"train|test|\d+", name)
        for line in _lines(text):
            label, _, video = line.split()[0].rpartition("/")
            if not label:
                raise UserError(f"{name}: expected lines such as Archery/v_Archery_g01_c01.avi, found {line!r}")
            splits[_stem(video)][str(int(number))] = subset
            labels[_stem(video)] = label

    def annotation_of(video_id: str) -> VideoAnnotation:
        stem = _stem(video_id)
        group = re.match(r"v_.+_g\d+(?=_c\d+$)", stem)
        return VideoAnnotation(labels.get(stem, _folder(video_id)), group and group[0], splits.get(stem, {}))

    return _annotate(ids, _stem, splits, annotation_of)


def read_hmdb51(ids: Sequence[str], texts: Mapping[str, str]) -> Annotations:
    """Read the lists of HMDB-51.

    Videos: `CLASS/MOVIE_CLASS_f_nm_np1_fr_med_0.avi`. Lists, in `testTrainMulti_7030_splits/`:
    `CLASS_test_split1.txt` to `3` (lines `NAME.avi 1`; 1 is train, 2 test, 0 neither).

    The splits were drawn per class, with the clips of one movie in one subset, so the group is `CLASS/MOVIE`.
    If the lists nevertheless put such a group into both subsets of a split, its videos have no group, because
    the official split does not keep them together.
    """
    splits: dict[Hashable, dict[str, str]] = defaultdict(dict)
    subsets_of_group: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    marks = {"0": None, "1": "train", "2": "test"}
    for name, text in texts.items():
        label, _, number = name.removesuffix(".txt").rpartition("_test_split")
        for line in _lines(text):
            video, _, mark = line.rpartition(" ")
            if mark not in marks:
                raise UserError(f"{name}: expected lines such as NAME.avi 1 (0, 1 or 2), found {line!r}")
            key = (label, _stem(video.strip()))
            video_splits, subset = splits[key], marks[mark]
            if subset is not None:
                video_splits[number] = subset
                subsets_of_group[_movie(*key), number].add(subset)
    divided_groups = {group for (group, _), subsets in subsets_of_group.items() if len(subsets) > 1}

    def annotation_of(video_id: str) -> VideoAnnotation:
        key = (_folder(video_id), _stem(video_id))
        group = _movie(*key)
        return VideoAnnotation(key[0], None if group in divided_groups else group, splits.get(key, {}))

    return _annotate(ids, lambda video_id: (_folder(video_id), _stem(video_id)), splits, annotation_of)


def read_kinetics(ids: Sequence[str], texts: Mapping[str, str]) -> Annotations:
    """Read the lists of Kinetics.

    Videos: `ID_000001_000011.mp4` (seconds in six digits) or `ID.mp4`, with any suffix, in `train/LABEL/`, in
    `train/` or in any other folder. Lists: `train.csv`, `val.csv` or `validate.csv`, and `test.csv`, with the columns
    `label` (missing in some test lists), `youtube_id`, `time_start`, `time_end` (seconds) and `split`.

    Listed videos that are absent are only counted, since many are no longer available online. A video that is
    in no list is left out, since the name of its folder need not be a class. If no test video has a label, the
    validation videos are the test videos.
    """
    listed: dict[Hashable, VideoAnnotation] = {}
    clips_of: dict[str, set[str]] = defaultdict(set)
    # In the order of the subsets, so that a clip in two lists becomes a test video rather than a training video.
    for name in sorted(texts, key=lambda name: SUBSETS.index(_subset_in(name))):
        for number, row in enumerate(csv.DictReader(io.StringIO(texts[name])), 2):
            key, youtube_id = _kinetics_key(row, f"{name}, line {number}")
            subset = subset_of(row.get("split") or _subset_in(name))
            if subset is None:
                raise UserError(
                    f"{name}, line {number}: expected one of {', '.join(SUBSETS)} as split, found {row['split']!r}"
                )
            listed[key] = VideoAnnotation(row.get("label") or None, None, {DEFAULT_SPLIT: subset})
            clips_of[youtube_id].add(key)

    def key_of(video_id: str) -> str:
        """The listed clip of a file; `ID.mp4` is a clip only if a single clip was cut from that video."""
        stem = _stem(video_id)
        clips = clips_of.get(stem, ())
        return next(iter(clips)) if len(clips) == 1 else stem

    listed = with_labelled_tests(listed)
    return _annotate(ids, key_of, listed, lambda video_id: listed.get(key_of(video_id)))


def read_ssv2(ids: Sequence[str], texts: Mapping[str, str]) -> Annotations:
    """Read the lists of Something-Something V2.

    Videos: `20bn-something-something-v2/ID.webm`. Lists, in `labels/`: `train.json`, `validation.json` and
    `test.json`, also called `something-something-v2-train.json` and so on; each is a list of objects with `id`
    and, except for the test videos, `template`, such as "Putting [something] on a surface".

    The class is the template without its brackets, as in the official `labels.json`. The validation videos
    are the test videos, since the official test videos have no labels.
    """
    listed: dict[Hashable, VideoAnnotation] = {}
    for name, text in texts.items():
        try:
            entries = json.loads(text)
            templates = {str(entry["id"]): entry.get("template") for entry in entries}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{name}: expected a list of objects with an id, found {error!r}") from error
        for video, template in templates.items():
            label = re.sub(r"[\[\]]", "", template) if template else None
            listed[video] = VideoAnnotation(label, None, {DEFAULT_SPLIT: _subset_in(name)})
    listed = with_labelled_tests(listed)
    return _annotate(ids, _stem, listed, lambda video_id: listed.get(_stem(video_id), VideoAnnotation()))


def with_labelled_tests(listed: dict[_Key, VideoAnnotation]) -> dict[_Key, VideoAnnotation]:
    """Make the validation videos test videos if the labels of the official test videos are not published.

    This is how everybody reports Something-Something, and most report Kinetics; settings are then selected on
    a part of the training videos.
    """
    if any(entry.label is not None and "test" in entry.splits.values() for entry in listed.values()):
        return listed
    replacements = {"validation": "test"}
    return {
        key: replace(entry, splits={name: replacements.get(subset, subset) for name, subset in entry.splits.items()})
        for key, entry in listed.items()
    }


LAYOUTS = {
    "ucf101": Layout(
        "UCF-101",
        ("ucfTrainTestlist", "annotations", "splits"),
        r"(train|test)list\d+\.txt",
        "ucfTrainTestlist/trainlist01.txt",
        read_ucf101,
    ),
    "hmdb51": Layout(
        "HMDB-51",
        ("testTrainMulti_7030_splits", "test_train_splits", "annotations", "splits"),
        r".+_test_split\d+\.txt",
        "testTrainMulti_7030_splits/CLASS_test_split1.txt",
        read_hmdb51,
    ),
    "kinetics": Layout(
        "Kinetics",
        ("annotations", "annotation", "labels"),
        r"(.*[_-])?(train|val|validate|validation|test)\.csv",
        "train.csv with a column youtube_id",
        read_kinetics,
        lambda text: "youtube_id" in text.partition("\n")[0],
    ),
    "ssv2": Layout(
        "Something-Something V2",
        ("labels", "annotations"),
        r"(something-something-v2-)?(train|validation|test)\.json",
        "labels/train.json",
        read_ssv2,
        lambda text: text.lstrip().startswith("[") and '"id"' in text[:2000],
    ),
}


def _annotate(
    ids: Sequence[str],
    key_of: Callable[[str], Hashable],
    listed: Mapping[Hashable, object],
    annotation_of: Callable[[str], VideoAnnotation | None],
) -> Annotations:
    """Match the videos with the entries of the lists; `annotation_of` returns None for a video to leave out."""
    keys = [key_of(video_id) for video_id in ids]
    videos = {video_id: entry for video_id in ids if (entry := annotation_of(video_id)) is not None}
    num_absent = len(set(listed).difference(keys))
    return Annotations(videos, sum(key in listed for key in keys), num_absent, len(ids) - len(videos))


def _stem(video_id: str) -> str:
    return posixpath.splitext(posixpath.basename(video_id))[0]


def _folder(video_id: str) -> str | None:
    """The name of the folder that a video is in: its class, in most layouts."""
    return posixpath.basename(posixpath.dirname(video_id)) or None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _subset_in(name: str) -> str:
    """The subset that a list is for, from the last word of its name."""
    subset = subset_of(re.split(r"[_-]", posixpath.splitext(name)[0])[-1])
    assert subset is not None, name
    return subset


def _movie(label: str | None, stem: str) -> str | None:
    """The group of an HMDB-51 video: its class, and the part of its name before the class."""
    movie, separator, _ = stem.rpartition(f"_{label}_")
    return f"{label}/{movie}" if separator else None


def _kinetics_key(row: Mapping[str, str | None], place: str) -> tuple[str, str]:
    """The file name of a clip without its suffix, and the id of the video that it was cut from."""
    youtube_id, start, end = (row.get(name) or "" for name in ("youtube_id", "time_start", "time_end"))
    if not youtube_id:
        raise UserError(f"{place}: expected a youtube_id, found none")
    if not start and not end:
        return youtube_id, youtube_id
    try:
        return f"{youtube_id}_{int(float(start)):06d}_{int(float(end)):06d}", youtube_id
    except ValueError as error:
        raise UserError(f"{place}: expected start and end in seconds, found {start!r} and {end!r}") from error
