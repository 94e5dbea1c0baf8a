"""The official folders and lists of public data sets: labels, groups and splits as they were published.

Each layout is a function from the texts of the lists to what they say of each video; `annotations` finds
the lists and tells the layout from them.
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

from scale_ray.corpus.splits import DEFAULT, SPLITS, subset_of
from scale_ray.errors import UserError


@dataclass(frozen=True)
class Official:
    """What the lists of a data set say of one video; `splits`: split name -> train, validation or test."""

    label: str | None = None
    group: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What the lists say of the videos of a corpus, by `video_id`.

    `num_listed` of these are named by the lists. `num_absent` videos are listed and not there,
    `num_left_out` are there and of no use without an entry in a list.
    """

    videos: dict[str, Official]
    num_listed: int
    num_absent: int
    num_left_out: int


@dataclass(frozen=True)
class Layout:
    """How a data set is told and read: usual folders of its lists, their names and texts, the function."""

    title: str
    folders: tuple[str, ...]
    lists: str
    example: str
    read: Callable[[Sequence[str], Mapping[str, str]], Reading]
    recognises: Callable[[str], bool] = bool


def read_ucf101(ids: Sequence[str], texts: Mapping[str, str]) -> Reading:
    """UCF-101: `UCF-101/CLASS/v_CLASS_gNN_cNN.avi`; `ucfTrainTestlist/` with `trainlist01.txt` to `03`
    (lines `CLASS/v_CLASS_gNN_cNN.avi 1`) and `testlist01.txt` to `03` (without the number).

    Videos are told by their names: those of one class are called `v_HandStandPushups_...` in a folder
    `HandstandPushups`. The group is `v_CLASS_gNN`: the clips that were cut from one longer video.
    """
    splits: dict[Hashable, dict[str, str]] = defaultdict(dict)
    labels: dict[Hashable, str] = {}
    for name, text in texts.items():
        side, number = re.findall(r"train|test|\d+", name)
        for line in _lines(text):
            label, _, video = line.split()[0].rpartition("/")
            if not label:
                raise UserError(f"{name}: expected lines such as Archery/v_Archery_g01_c01.avi, found {line!r}")
            splits[_stem(video)][str(int(number))] = side
            labels[_stem(video)] = label

    def official(video_id: str) -> Official:
        stem = _stem(video_id)
        group = re.match(r"v_.+_g\d+(?=_c\d+$)", stem)
        return Official(labels.get(stem, _folder(video_id)), group and group[0], splits.get(stem, {}))

    return _joined(ids, _stem, splits, official)


def read_hmdb51(ids: Sequence[str], texts: Mapping[str, str]) -> Reading:
    """HMDB-51: `CLASS/MOVIE_CLASS_f_nm_np1_fr_med_0.avi`; `testTrainMulti_7030_splits/` with
    `CLASS_test_split1.txt` to `3` (lines `NAME.avi 1`; 1 is train, 2 test, 0 neither).

    The splits are drawn class by class with the clips of one movie on one side, so the group is
    `CLASS/MOVIE`. Where the lists do put such a group on both sides, its videos have no group: a group
    that a split cuts through would promise what it does not keep.
    """
    splits: dict[Hashable, dict[str, str]] = defaultdict(dict)
    sides: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    marks = {"0": None, "1": "train", "2": "test"}
    for name, text in texts.items():
        label, _, number = name.removesuffix(".txt").rpartition("_test_split")
        for line in _lines(text):
            video, _, mark = line.rpartition(" ")
            if mark not in marks:
                raise UserError(f"{name}: expected lines such as NAME.avi 1, or 0 or 2, found {line!r}")
            key = (label, _stem(video.strip()))
            known, side = splits[key], marks[mark]
            if side is not None:
                known[number] = side
                sides[_movie(*key), number].add(side)
    cut = {group for (group, _), found in sides.items() if len(found) > 1}

    def official(video_id: str) -> Official:
        key = (_folder(video_id), _stem(video_id))
        group = _movie(*key)
        return Official(key[0], None if group in cut else group, splits.get(key, {}))

    return _joined(ids, lambda video_id: (_folder(video_id), _stem(video_id)), splits, official)


def read_kinetics(ids: Sequence[str], texts: Mapping[str, str]) -> Reading:
    """Kinetics: `train.csv`, `val.csv` or `validate.csv`, `test.csv` with the columns `label` (none in
    some test lists), `youtube_id`, `time_start`, `time_end` (seconds) and `split`.

    Videos are called `ID_000001_000011.mp4` (seconds in six digits) or `ID.mp4`, with any suffix, in
    `train/LABEL/`, in `train/` or anywhere. Many of those listed have gone from where they were, so
    their absence is only counted. A video that no list names is left out: its folder may be anything.
    Without labelled test videos the validation videos are the test videos.
    """
    listed: dict[Hashable, Official] = {}
    plain: dict[str, set[str]] = defaultdict(set)
    # In the order of the sides: a clip that is in two lists is a test video rather than a training video.
    for name in sorted(texts, key=lambda name: SPLITS.index(_side_in(name))):
        for number, row in enumerate(csv.DictReader(io.StringIO(texts[name])), 2):
            key, youtube_id = _kinetics_key(row, f"{name}, line {number}")
            side = subset_of(row.get("split") or _side_in(name))
            if side is None:
                raise UserError(f"{name}, line {number}: expected a split, found {row['split']!r}")
            listed[key] = Official(row.get("label") or None, None, {DEFAULT: side})
            plain[youtube_id].add(key)

    def key_of(video_id: str) -> str:
        """The clip of a file; `ID.mp4` is one only where a single clip was cut from that video."""
        stem = _stem(video_id)
        clips = plain.get(stem, ())
        return next(iter(clips)) if len(clips) == 1 else stem

    listed = _with_known_tests(listed)
    return _joined(ids, key_of, listed, lambda video_id: listed.get(key_of(video_id)))


def read_ssv2(ids: Sequence[str], texts: Mapping[str, str]) -> Reading:
    """Something-Something V2: `20bn-something-something-v2/ID.webm`; `labels/` with `train.json`,
    `validation.json` and `test.json`, also called `something-something-v2-train.json` and so on: lists of
    objects with `id` and, but for the test videos, `template`, such as "Putting [something] on a surface".

    The class is the template without its brackets, as in the official `labels.json`. The validation videos
    are the test videos, since those have no labels.
    """
    listed: dict[Hashable, Official] = {}
    for name, text in texts.items():
        try:
            entries = json.loads(text)
            found = {str(entry["id"]): entry.get("template") for entry in entries}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{name}: expected a list of objects with an id, found {error!r}") from error
        for video, template in found.items():
            label = re.sub(r"[\[\]]", "", template) if template else None
            listed[video] = Official(label, None, {DEFAULT: _side_in(name)})
    listed = _with_known_tests(listed)
    return _joined(ids, _stem, listed, lambda video_id: listed.get(_stem(video_id), Official()))


def _with_known_tests(listed: dict[Hashable, Official]) -> dict[Hashable, Official]:
    """The validation videos as test videos where the labels of the official ones are not published.

    So everybody reports Something-Something, and most report Kinetics; settings are then chosen on a part of
    the training videos.
    """
    if any(official.label is not None and "test" in official.splits.values() for official in listed.values()):
        return listed
    moved = {"validation": "test"}
    return {
        key: replace(official, splits={name: moved.get(side, side) for name, side in official.splits.items()})
        for key, official in listed.items()
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


def _joined(
    ids: Sequence[str],
    key_of: Callable[[str], Hashable],
    listed: Mapping[Hashable, object],
    official: Callable[[str], Official | None],
) -> Reading:
    """Put the entries of the lists to the videos; `official` gives None for a video to leave out."""
    keys = [key_of(video_id) for video_id in ids]
    videos = {video_id: found for video_id in ids if (found := official(video_id)) is not None}
    num_absent = len(set(listed).difference(keys))
    return Reading(videos, sum(key in listed for key in keys), num_absent, len(ids) - len(videos))


def _stem(video_id: str) -> str:
    return posixpath.splitext(posixpath.basename(video_id))[0]


def _folder(video_id: str) -> str | None:
    """The name of the folder that a video is in: its class, in most layouts."""
    return posixpath.basename(posixpath.dirname(video_id)) or None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _side_in(name: str) -> str:
    """The side of the split that a list is of, from the last word of its name."""
    side = subset_of(re.split(r"[_-]", posixpath.splitext(name)[0])[-1])
    assert side is not None, name
    return side


def _movie(label: str | None, stem: str) -> str | None:
    """The group of an HMDB-51 video: what stands before the class in its name, within its class."""
    movie, between, _ = stem.rpartition(f"_{label}_")
    return f"{label}/{movie}" if between else None


def _kinetics_key(row: Mapping[str, str | None], where: str) -> tuple[str, str]:
    """The name of a clip's file and the id of the video that it was cut from."""
    youtube_id, start, end = (row.get(name) or "" for name in ("youtube_id", "time_start", "time_end"))
    if not youtube_id:
        raise UserError(f"{where}: expected a youtube_id, found none")
    if not start and not end:
        return youtube_id, youtube_id
    try:
        return f"{youtube_id}_{int(float(start)):06d}_{int(float(end)):06d}", youtube_id
    except ValueError as error:
        raise UserError(f"{where}: expected seconds, found {start!r} and {end!r}") from error
