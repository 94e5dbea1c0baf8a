import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scale_ray.corpus import read_corpus
from scale_ray.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("kick/1.mp4", "kick/2.mp4", "hug/1.mp4", ".hidden/3.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 7)
    return tmp_path


def test_a_folder_gives_classes_by_subfolder_and_stable_ids(folder):
    corpus = read_corpus(str(folder))
    assert corpus.videos["video_id"].to_pylist() == ["hug/1.mp4", "kick/1.mp4", "kick/2.mp4"]
    assert corpus.videos["label"].to_pylist() == ["hug", "kick", "kick"]
    assert corpus.videos["size_bytes"].to_pylist() == [7, 7, 7]
    assert "80 % train" in corpus.split_note


def test_the_store_inside_the_folder_is_left_out(folder):
    (folder / "store").mkdir()
    (folder / "store" / "store.json").write_text("{}")
    assert len(read_corpus(str(folder), leave_out=str(folder / "store")).videos) == 3


def test_a_glob_takes_ids_from_the_part_before_the_first_wildcard(folder):
    corpus = read_corpus(str(folder / "*" / "1.mp4"))
    assert corpus.videos["video_id"].to_pylist() == ["hug/1.mp4", "kick/1.mp4"]


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
    assert corpus.videos.select(["video_id", "label", "split", "camera"]).to_pylist() == [
        {"video_id": "hug/1.mp4", "label": "b", "split": "validation", "camera": 4},
        {"video_id": "kick/1.mp4", "label": "a", "split": "train", "camera": 3},
    ]
    assert corpus.videos["path"][0].as_py() == str(folder / "hug/1.mp4")


def test_groups_stay_together_in_a_hashed_split(tmp_path):
    rows = "".join(f"{n}.mp4,{'ab'[n % 2]},g{n // 4}\n" for n in range(80))
    (tmp_path / "m.csv").write_text("path,label,group\n" + rows)
    videos = read_corpus(str(tmp_path / "m.csv")).videos
    splits: dict[str, set[str]] = {}
    for group, split in zip(videos["group"].to_pylist(), videos["split"].to_pylist(), strict=True):
        splits.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,x\n", "expected a column 'path', found file, label"),
        ("path,split\na.mp4,tset\n", "expected a split of train, validation, test, found 'tset' for 'a.mp4'"),
        ("path\na.mp4\na.mp4\n", "expected every video once, found 'a.mp4' more than once"),
        ("path,group,split\na,g,train\nb,g,test\n", "expected each group in one split, found group 'g'"),
        ("path\n", "found no row"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_corpus(str(tmp_path / "m.csv"))


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="found an empty folder"):
        read_corpus(str(tmp_path))
    with pytest.raises(UserError, match="found nothing at"):
        read_corpus(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="found no file that matches"):
        read_corpus(str(tmp_path / "*.mp4"))
