import threading
import time

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from scale_ray.config import CorpusOptions
from scale_ray.corpus import corpus as corpus_module
from scale_ray.corpus import sizes as corpus_sizes
from scale_ray.corpus.corpus import read_corpus
from scale_ray.corpus.splits import modes_of
from scale_ray.errors import UserError


def splits_of(corpus):
    return {row["video_id"]: dict(row["splits"]) for row in corpus.videos.to_pylist()}


def column(corpus, name):
    return dict(zip(corpus.videos["video_id"].to_pylist(), corpus.videos[name].to_pylist(), strict=True))


@pytest.fixture
def folder(tmp_path):
    for name in ("kick/1.mp4", "kick/2.mp4", "hug/1.mp4", ".hidden/3.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 7)
    return tmp_path


def manifest(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    return read_corpus(str(tmp_path / "m.csv"))


def test_a_folder_gives_classes_by_subfolder_and_stable_ids(folder):
    corpus = read_corpus(str(folder))
    assert corpus.videos["video_id"].to_pylist() == ["hug/1.mp4", "kick/1.mp4", "kick/2.mp4"]
    assert corpus.videos["label"].to_pylist() == ["hug", "kick", "kick"]
    assert corpus.videos["size_bytes"].to_pylist() == [7, 7, 7]
    assert corpus.videos["path"][0].as_py() == str(folder / "hug/1.mp4")
    assert "about 80 % train and 20 % test by a hash of the video" in corpus.split_note


def test_the_columns_have_their_types_and_what_is_unknown_is_null(folder):
    corpus = read_corpus(str(folder))
    assert {field.name: str(field.type) for field in corpus.videos.schema} == {
        "video_id": "string",
        "path": "string",
        "size_bytes": "int64",
        "start_s": "double",
        "end_s": "double",
        "label": "string",
        "labels": "list<item: string>",
        "target": "double",
        "group": "string",
        "splits": "map<string, string>",
    }
    for name in ("start_s", "end_s", "labels", "target", "group"):
        assert corpus.videos[name].null_count == 3
    assert corpus.split_names == ("default",)


def test_the_store_inside_the_folder_is_left_out(folder):
    (folder / "store").mkdir()
    (folder / "store" / "store.json").write_text("{}")
    assert len(read_corpus(str(folder), excluded_folder=str(folder / "store")).videos) == 3
    assert len(read_corpus(f"{folder}/**", excluded_folder=str(folder / "store")).videos) == 3


def test_a_prefix_stands_before_every_id_and_moves_no_video_to_another_split(tmp_path):
    for number in range(40):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{number}.mp4").touch()
    plain = splits_of(read_corpus(str(tmp_path)))
    prefixed = splits_of(read_corpus(str(tmp_path), CorpusOptions(id_prefix="mine")))
    assert prefixed == {f"mine/{video_id}": splits for video_id, splits in plain.items()}


def test_a_prefix_keeps_the_groups_of_two_corpora_apart(tmp_path):
    manifest = tmp_path / "videos.csv"
    (tmp_path / "a.mp4").touch()
    manifest.write_text("path,group,split\na.mp4,scene 1,train\n")
    [group] = read_corpus(str(manifest), CorpusOptions(id_prefix="mine")).videos["group"].to_pylist()
    assert group == "mine/scene 1"


@pytest.mark.parametrize("prefix", ["", "/a", "a/"])
def test_a_prefix_that_makes_odd_ids_is_refused(prefix):
    with pytest.raises(UserError, match="id_prefix: expected"):
        CorpusOptions(id_prefix=prefix)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.6])
def test_the_test_share_is_an_option(tmp_path, fraction):
    text = "path,label\n" + "".join(f"{n}.mp4,a\n" for n in range(400))
    (tmp_path / "m.csv").write_text(text)
    corpus = read_corpus(str(tmp_path / "m.csv"), CorpusOptions(test_share=fraction))
    num_test = sum(splits == {"default": "test"} for splits in splits_of(corpus).values())
    assert num_test == pytest.approx(400 * fraction, abs=30)
    assert f"{fraction:.0%}".replace("%", " % test") in corpus.split_note


def test_a_glob_takes_ids_from_the_part_before_the_first_wildcard(folder):
    corpus = read_corpus(str(folder / "*" / "1.mp4"))
    assert corpus.videos["video_id"].to_pylist() == ["hug/1.mp4", "kick/1.mp4"]


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("*/1.mp4", ["hug/1.mp4", "kick/1.mp4"]),
        ("kick/[2-9].mp4", ["2.mp4"]),
        ("**/*.mp4", ["deep/a b/1 #.mp4", "hug/1.mp4", "kick/1.mp4", "kick/2.mp4"]),
        ("*.mp4", None),
        ("deep/a%20b/*.mp4", ["1 #.mp4"]),
        ("*/a%20b/*.mp4", ["deep/a b/1 #.mp4"]),
    ],
)
def test_a_glob_below_a_uri(folder, pattern, ids):
    (folder / "deep" / "a b").mkdir(parents=True)
    (folder / "deep" / "a b" / "1 #.mp4").touch()
    if ids is None:
        with pytest.raises(UserError, match="found no file that matches"):
            read_corpus(f"file://{folder}/{pattern}")
        return
    corpus = read_corpus(f"file://{folder}/{pattern}")
    assert corpus.videos["video_id"].to_pylist() == ids
    for path in corpus.videos["path"].to_pylist():
        filesystem, inner = pa.fs.FileSystem.from_uri(path)
        assert filesystem.get_file_info(inner).is_file


def test_two_stars_have_to_stand_alone_below_a_uri(folder):
    with pytest.raises(UserError, match=r"expected \*\* to stand alone between two / of a glob"):
        read_corpus(f"file://{folder}/a**/x.mp4")


def test_the_options_of_a_uri_are_no_wildcard_and_stay_behind_the_paths(folder, monkeypatch):
    local = corpus_module.filesystem_of, corpus_module.list_files

    def without_options(location):
        assert location.endswith("?region=here"), location
        return location.partition("?")[0]

    monkeypatch.setattr(corpus_module, "filesystem_of", lambda location: local[0](without_options(location)))
    monkeypatch.setattr(corpus_module, "list_files", lambda location: local[1](without_options(location)))
    for source in (f"file://{folder}?region=here", f"file://{folder}/*/1.mp4?region=here"):
        corpus = read_corpus(source, CorpusOptions(layout="folder"))
        path = corpus.videos["path"][0].as_py()
        assert path == f"file://{folder}/hug/1.mp4"
        assert corpus.opened_at(path) == f"file://{folder}/hug/1.mp4?region=here"


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path):
    (tmp_path / "takes [1]").mkdir()
    (tmp_path / "takes [1]" / "a.mp4").touch()
    assert read_corpus(str(tmp_path / "takes [1]")).videos["video_id"].to_pylist() == ["a.mp4"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_manifest_keeps_its_own_columns(folder, suffix):
    table = pa.table(
        {"path": ["kick/1.mp4", "hug/1.mp4"], "label": ["a", "b"], "split": ["train", "val"], "camera": [3, 4]}
    )
    path = folder / f"list.{suffix}"
    if suffix == "csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    corpus = read_corpus(str(path))
    assert corpus.videos.select(["video_id", "label", "splits", "camera"]).to_pylist() == [
        {"video_id": "hug/1.mp4", "label": "b", "splits": [("default", "validation")], "camera": 4},
        {"video_id": "kick/1.mp4", "label": "a", "splits": [("default", "train")], "camera": 3},
    ]
    assert corpus.videos["path"][0].as_py() == str(folder / "hug/1.mp4")
    assert corpus.split_note == "splits as given"


def test_a_manifest_has_several_splits_and_videos_that_are_in_none(tmp_path):
    corpus = manifest(tmp_path, "path,split_1,split_loso,split\na,train,test,\nb,Testing,,valid\nc,,,\n")
    assert splits_of(corpus) == {
        "a": {"1": "train", "loso": "test"},
        "b": {"1": "test", "default": "validation"},
        "c": {},
    }
    assert corpus.split_names == ("1", "default", "loso")
    assert corpus.split_note == "splits as given; 1 video in no split"
    assert corpus.videos.column_names[-1] == "splits"


def test_columns_of_splits_without_any_entry_are_no_splits(tmp_path):
    corpus = manifest(tmp_path, "path,label,split\na,x,\nb,x,\n")
    assert "by a hash" in corpus.split_note
    assert corpus.split_names == ("default",)


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    corpus = manifest(tmp_path, "id,path,label,group,split,split_2\n007,1,001,0x1,train,test\n7,2,1e3,NA,test,test\n")
    rows = corpus.videos.select(["video_id", "label", "group"]).to_pylist()
    assert rows == [
        {"video_id": "007", "label": "001", "group": "0x1"},
        {"video_id": "7", "label": "1e3", "group": "NA"},
    ]


def test_several_labels_and_targets_in_csv(tmp_path):
    corpus = manifest(tmp_path, "path,labels,target\na,run| jump,1.5\nb,run;,-2e3\nc,,\nd,,nan\n")
    assert column(corpus, "labels") == {"a": ["run", "jump"], "b": ["run"], "c": None, "d": None}
    assert column(corpus, "target") == {"a": 1.5, "b": -2000.0, "c": None, "d": None}
    assert column(corpus, "label") == dict.fromkeys("abcd")


def test_several_labels_targets_and_whole_numbers_in_parquet(tmp_path):
    table = pa.table(
        {
            "path": ["a", "b", "c"],
            "label": [1.0, float("nan"), 3.0],
            "labels": [["x", "y"], [], None],
            "target": [1, 2, None],
            "splits": pa.array([[("1", "train")], [("1", "val")], None], pa.map_(pa.string(), pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    corpus = read_corpus(str(tmp_path / "m.parquet"))
    assert column(corpus, "label") == {"a": "1", "b": None, "c": "3"}
    assert column(corpus, "labels") == {"a": ["x", "y"], "b": [], "c": None}
    assert column(corpus, "target") == {"a": 1.0, "b": 2.0, "c": None}
    assert splits_of(corpus) == {"a": {"1": "train"}, "b": {"1": "validation"}, "c": {}}


@pytest.mark.parametrize("known", ["label", "labels", "target"])
def test_only_videos_with_a_label_are_test_videos(tmp_path, known):
    rows = "".join(f"{n}.mp4,{n if n % 2 else ''}\n" for n in range(200))
    splits = splits_of(manifest(tmp_path, f"path,{known}\n{rows}"))
    remainders = {
        int(video_id.removesuffix(".mp4")) % 2 for video_id, subsets in splits.items() if subsets["default"] == "test"
    }
    assert remainders == {1}


def test_videos_without_any_label_are_training_videos(tmp_path):
    corpus = manifest(tmp_path, "path\n" + "".join(f"{n}.mp4\n" for n in range(50)))
    assert all(splits == {"default": "train"} for splits in splits_of(corpus).values())
    assert "no labels" in corpus.split_note


def test_groups_stay_together_in_a_hashed_split(tmp_path):
    rows = "".join(f"{n}.mp4,{'ab'[n % 2]},g{n // 4}\n" for n in range(80))
    corpus = manifest(tmp_path, "path,label,group\n" + rows)
    subsets_of_group: dict[str, set[str]] = {}
    for video_id, group in column(corpus, "group").items():
        subsets_of_group.setdefault(group, set()).add(splits_of(corpus)[video_id]["default"])
    assert all(len(subsets) == 1 for subsets in subsets_of_group.values())
    assert set().union(*subsets_of_group.values()) == {"train", "test"}
    assert "hash of the group" in corpus.split_note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,x\n", "expected a column 'path', found file, label"),
        ("path,split\na.mp4,tset\n", "expected one of train, validation, test as split, found 'tset' for 'a.mp4'"),
        ("path,split_2\na.mp4,tset\n", "expected one of train, validation, test as split, found 'tset' for 'a.mp4'"),
        ("path\na.mp4\na.mp4\n", "expected every video once, found 'a.mp4' more than once"),
        ("path,group,split\na,g,train\nb,g,test\n", "expected each group in one subset, found group 'g'"),
        ("path,group,split_2\na,g,train\nb,g,test\n", "found group 'g' in train and test of split '2'"),
        ("path\n", "expected videos, found no rows in"),
        ("", "expected a readable manifest"),
        ("path,path\na,b\n", "expected every column once, found 'path'"),
        ("path,split,split_default\na,train,test\n", "expected every split once, found 'default'"),
        ("path,label\na,x\n,y\n", "expected a value for 'path' in every row, found none in row 2"),
        ("id,path\n1,a\n ,b\n", "expected a value for 'id' in every row, found none in row 2"),
        ("path,target\na,1\nb,tall\n", "expected a finite number as target, found 'tall' in row 2"),
        ("path,target\na,inf\n", "expected a finite number as target, found 'inf' in row 1"),
        ("path,label\na,b,c\n", "expected a readable manifest"),
        ("path,splits\na,train\n", "expected columns 'split' or 'split_NAME', found 'splits'"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        manifest(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PAR1 cut short", b"PAR1" + bytes(40) + b"PAR1"])
def test_a_damaged_parquet_manifest_is_refused(tmp_path, data):
    (tmp_path / "m.parquet").write_bytes(data)
    with pytest.raises(UserError, match="expected a readable manifest") as caught:
        read_corpus(str(tmp_path / "m.parquet"))
    assert "\n" not in str(caught.value)


def test_groups_may_be_in_different_subsets_of_different_splits(tmp_path):
    corpus = manifest(tmp_path, "path,group,split_1,split_2\na,g,train,test\nb,g,train,test\n")
    assert splits_of(corpus)["b"] == {"1": "train", "2": "test"}


def test_paths_of_a_manifest_are_relative_to_it_absolute_or_uris(folder):
    rows = f"kick/1.mp4\n{folder}/hug/1.mp4\nhttps://host.invalid/a.mp4\nfile://{folder}/kick/2.mp4\nno.mp4\n"
    (folder / "m.csv").write_text("path\n" + rows)
    sizes = column(read_corpus(str(folder / "m.csv")), "size_bytes")
    assert sizes == {
        "kick/1.mp4": 7,
        f"{folder}/hug/1.mp4": 7,
        f"file://{folder}/kick/2.mp4": 7,
        "https://host.invalid/a.mp4": None,
        "no.mp4": None,
    }


def test_paths_of_a_manifest_at_a_uri_are_below_that_uri(folder):
    (folder / "kick" / "a b.mp4").write_bytes(b"x" * 3)
    (folder / "m.csv").write_text("path\nkick/a b.mp4\n")
    videos = read_corpus(f"file://{folder}/m.csv").videos.to_pylist()
    assert videos[0]["path"] == f"file://{folder}/kick/a%20b.mp4"
    assert videos[0]["size_bytes"] == 3


def test_remote_sizes_are_read_concurrently_and_one_that_fails_is_null(tmp_path, monkeypatch):
    num_at_once, max_at_once, lock = 0, 0, threading.Lock()

    class Info:
        size = 5

    class Slow:
        def get_file_info(self, path):
            nonlocal num_at_once, max_at_once
            with lock:
                num_at_once += 1
                max_at_once = max(max_at_once, num_at_once)
            time.sleep(0.05)
            with lock:
                num_at_once -= 1
            if path.endswith("/7"):
                raise RuntimeError("the server has gone")
            return Info()

    original = corpus_sizes.filesystem_of
    monkeypatch.setattr(
        corpus_sizes,
        "filesystem_of",
        lambda location: (Slow(), location) if location.startswith("s3://") else original(location),
    )
    corpus = manifest(tmp_path, "path\n" + "".join(f"s3://bucket/{n}\n" for n in range(32)))
    sizes = column(corpus, "size_bytes")
    assert sizes.pop("s3://bucket/7") is None
    assert set(sizes.values()) == {5}
    assert 2 <= max_at_once <= 16


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="found an empty folder"):
        read_corpus(str(tmp_path))
    with pytest.raises(UserError, match="found nothing at"):
        read_corpus(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="found no file that matches"):
        read_corpus(str(tmp_path / "*.mp4"))
    with pytest.raises(UserError, match="expected a manifest of videos, found no file"):
        read_corpus(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("splits", "several", "modes"),
    [
        ({}, False, ("train",)),
        ({"default": "train"}, False, ("train",)),
        ({"default": "validation"}, False, ("train",)),
        ({"default": "test"}, False, ("eval",)),
        ({"1": "test", "2": "train"}, False, ("train", "eval")),
        ({"1": "test", "2": "test"}, False, ("train", "eval")),
        ({"1": "train"}, True, ("train", "eval")),
        ({}, True, ("train", "eval")),
    ],
)
def test_the_clips_that_a_video_needs_follow_from_its_splits(splits, several, modes):
    assert modes_of(splits, has_several_splits=several) == modes


@pytest.mark.parametrize("end", ["", "/**"])
def test_hidden_files_and_the_store_are_left_out_at_another_file_system(end):
    driver = fsspec.filesystem("memory")
    for name in ("kick/1.mp4", "hug/2.mp4", ".hidden/3.mp4", "hug/.4.mp4", "store/store.json"):
        driver.pipe(f"/listed/{name}", b"video")
    corpus = read_corpus(f"memory://listed{end}", excluded_folder="memory://listed/store")
    assert corpus.videos["video_id"].to_pylist() == ["hug/2.mp4", "kick/1.mp4"]
    assert corpus.videos["size_bytes"].to_pylist() == [5, 5]
    assert corpus.notes == ()
