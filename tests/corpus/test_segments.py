"""Segments of files as rows of a manifest: their ids, groups and splits."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scale_ray.corpus import read_corpus
from scale_ray.errors import UserError


def read_csv(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    return read_corpus(str(tmp_path / "m.csv"))


def segments(corpus):
    rows = corpus.videos.select(["video_id", "start_s", "end_s"]).to_pylist()
    return {row["video_id"]: (row["start_s"], row["end_s"]) for row in rows}


def splits(corpus):
    return {row["video_id"]: dict(row["splits"]).get("default") for row in corpus.videos.to_pylist()}


@pytest.mark.parametrize("names", ["start_s,end_s", "start,end", " Start ,END_S"])
def test_segments_have_ids_of_their_own(tmp_path, names):
    text = f"path,label,{names}\na.mp4,x,10,20\na.mp4,y,20.0,30.25\na.mp4,z,30.25,\nb.mp4,x,,5\nc.mp4,x,,\nd.mp4,x,0,\n"
    corpus = read_csv(tmp_path, text)
    assert segments(corpus) == {
        "a.mp4#10-20": (10.0, 20.0),
        "a.mp4#20-30.25": (20.0, 30.25),
        "a.mp4#30.25-": (30.25, None),
        "b.mp4#0-5": (0.0, 5.0),
        "c.mp4": (None, None),
        "d.mp4": (None, None),
    }
    assert {path for path in corpus.videos["path"].to_pylist() if "a.mp4" in path} == {f"{tmp_path}/a.mp4"}
    assert str(corpus.videos.schema.field("start_s").type) == "double"


def test_given_ids_stay(tmp_path):
    corpus = read_csv(tmp_path, "path,id,start_s,end_s\na.mp4,first,0,1\na.mp4,second,1,2\n")
    assert segments(corpus) == {"first": (0.0, 1.0), "second": (1.0, 2.0)}
    assert corpus.videos["group"].to_pylist() == ["a.mp4", "a.mp4"]


def test_a_segment_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected every video once, found 'a\.mp4#1-2' more than once"):
        read_csv(tmp_path, "path,start_s,end_s\na.mp4,1,2\na.mp4,1.0,2\n")


def test_a_table_of_videos_is_a_manifest(tmp_path):
    pq.write_table(read_csv(tmp_path, "path,start_s,end_s\na.mp4,1,2\nb.mp4,,\n").videos, tmp_path / "videos.parquet")
    corpus = read_corpus(str(tmp_path / "videos.parquet"))
    assert segments(corpus) == {"a.mp4#1-2": (1.0, 2.0), "b.mp4": (None, None)}


def test_columns_without_any_value_change_nothing(tmp_path):
    columns = {"path": ["a.mp4", "b.mp4"], "start_s": pa.nulls(2), "end_s": pa.array([float("nan"), None])}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    corpus = read_corpus(str(tmp_path / "m.parquet"))
    assert segments(corpus) == dict.fromkeys(["a.mp4", "b.mp4"], (None, None))
    assert corpus.videos["group"].null_count == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("-1,2", "expected start_s of at least 0, found -1 in row 2"),
        ("-0.5,", "expected start_s of at least 0, found -0.5 in row 2"),
        (",-3", "expected end_s after start_s, found 0 to -3 in row 2"),
        ("5,5", "expected end_s after start_s, found 5 to 5 in row 2"),
        (",0", "expected end_s after start_s, found 0 to 0 in row 2"),
        ("x,5", "expected a finite number as start_s, found 'x' in row 2"),
        ("1,inf", "expected a finite number as end_s, found 'inf' in row 2"),
        ("0:10,0:20", "expected a finite number as start_s, found '0:10' in row 2"),
    ],
)
def test_a_wrong_segment_is_refused_with_its_row(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        read_csv(tmp_path, f"path,start_s,end_s\na.mp4,0,1\nb.mp4,{row}\n")
    assert "\n" not in str(caught.value)


def test_two_columns_for_the_start_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected every column once, found 'start_s' more than once \('start'\)"):
        read_csv(tmp_path, "path,start_s,start\na.mp4,0,1\n")


def test_the_segments_of_a_file_are_never_on_both_sides_of_a_drawn_split(tmp_path):
    spellings = ["{}.mp4", "./{}.mp4", f"{tmp_path}/x/../{{}}.mp4"]
    rows = [
        f"{spellings[part % 3].format(file)},x,{part},{part + 1}\n" if part else f"{file}.mp4,x,,\n"
        for file in range(40)
        for part in range(6)
    ]
    corpus = read_csv(tmp_path, "path,label,start_s,end_s\n" + "".join(rows))
    sides: dict[str, set[str]] = {}
    for video_id, subset in splits(corpus).items():
        sides.setdefault(video_id.rpartition("/")[2].partition(".")[0], set()).add(subset)
    assert all(len(subsets) == 1 for subsets in sides.values())
    assert set().union(*sides.values()) == {"train", "test"}
    assert "by a hash of the group" in corpus.split_note
    assert len(set(corpus.videos["group"].to_pylist())) == 40
    assert corpus.notes == ()


def test_the_draw_does_not_depend_on_where_the_manifest_lies(tmp_path):
    drawn = []
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        text = "".join(f"{file}.mp4,x,{start},{start + 1}\n" for file in range(50) for start in (0, 5))
        drawn.append(splits(read_csv(tmp_path / name, "path,label,start_s,end_s\n" + text)))
    assert drawn[0] == drawn[1]


def test_a_given_split_through_a_file_is_refused_unless_groups_are_given(tmp_path):
    header, rows = "path,split,start_s,end_s", ["a.mp4,train,0,5", "a.mp4,test,5,9", "b.mp4,test,0,5"]
    with pytest.raises(UserError, match=r"found group 'a.mp4' in train and test; the rows of a file are a group, if"):
        read_csv(tmp_path, "\n".join([header, *rows]) + "\n")
    groups = ["morning", "evening", ""]
    given = [f"{row},{group}" for row, group in zip(rows, groups, strict=True)]
    corpus = read_csv(tmp_path, "\n".join([header + ",group", *given]) + "\n")
    assert corpus.videos["group"].to_pylist() == ["morning", "evening", "b.mp4"]
    assert corpus.notes == ("1 file has rows in several subsets, such as 'a.mp4' in train and test",)


def test_whole_files_that_occur_twice_in_a_split_are_said(tmp_path):
    rows = "".join(f"{n}.mp4,{side} {n},{side}\n" for n in range(3) for side in ("train", "test"))
    corpus = read_csv(tmp_path, "path,id,split\n" + rows)
    assert corpus.videos["group"].null_count == 6
    assert corpus.notes == ("3 files have rows in several subsets, such as '0.mp4' in train and test",)
