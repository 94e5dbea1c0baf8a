"""Folders with odd names, links and permissions: every file once, and a line on whatever is left out."""

import glob
import os
import random
from pathlib import Path

import pytest

from scale_ray.corpus.corpus import read_corpus
from scale_ray.corpus.local_files import LocalFiles
from scale_ray.errors import UserError


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")


def ids_of(corpus):
    return corpus.videos["video_id"].to_pylist()


def sources(folder):
    """The same files as a folder, a URI and a glob."""
    return (str(folder), f"file://{folder}", f"{folder}/**")


@pytest.fixture(params=range(3))
def read(request):
    return lambda folder: read_corpus(sources(folder)[request.param])


def test_a_file_whose_name_is_not_utf_8_is_one_unusable_file(tmp_path, read):
    make(tmp_path, "kick/1.mp4")
    (tmp_path / "kick" / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"video")
    corpus = read(tmp_path)
    assert ids_of(corpus) == ["kick/1.mp4", "kick/caf\\xe9.mp4"]
    path = corpus.videos["path"][1].as_py()
    assert path in (f"{tmp_path}/kick/caf\\xe9.mp4", f"file://{tmp_path}/kick/caf%5Cxe9.mp4")
    assert not Path(path).exists()
    assert corpus.notes == ("found 1 file whose path is not UTF-8 and cannot be opened, such as kick/caf\\xe9.mp4",)


def test_a_folder_whose_name_is_not_utf_8_holds_unusable_files(tmp_path, read):
    make(tmp_path, "a/1.mp4", os.fsdecode(b"\xff/1.mp4"), os.fsdecode(b"\xff/2.mp4"))
    corpus = read(tmp_path)
    assert ids_of(corpus) == ["\\xff/1.mp4", "\\xff/2.mp4", "a/1.mp4"]
    assert corpus.notes == ("found 2 files whose paths are not UTF-8 and cannot be opened, such as \\xff/1.mp4",)


def test_a_file_with_the_name_that_stands_for_another_ones_bytes_is_the_file_of_that_name(tmp_path):
    make(tmp_path, "\\xff.mp4")
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(b"another")
    corpus = read_corpus(str(tmp_path))
    assert corpus.videos["size_bytes"].to_pylist() == [len(b"video")]
    assert len(corpus.notes) == 1


def test_official_lists_are_found_beside_a_name_that_is_not_utf_8(tmp_path):
    make(tmp_path, "a/v_a_g01_c01.avi", os.fsdecode(b"\xff.txt"))
    (tmp_path / "trainlist01.txt").write_text("a/v_a_g01_c01.avi 1\n")
    assert "official split 1 of UCF-101" in read_corpus(str(tmp_path)).split_note


def test_a_location_that_is_not_utf_8_is_refused_in_one_line(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    make(folder, "a.mp4")
    for source in (str(folder), f"{folder}/*.mp4", f"{folder}/a.csv"):
        with pytest.raises(UserError, match=r"expected a location in UTF-8, found '.*\\udcff") as caught:
            read_corpus(source)
        str(caught.value).encode()


@pytest.fixture
def locked(monkeypatch):
    """Folders called `locked...` cannot be read; permissions do not hold for the superuser."""
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path).startswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.usefixtures("locked")
def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path, read):
    make(tmp_path, "a/1.mp4", "a/locked/2.mp4", "b/3.mp4")
    corpus = read(tmp_path)
    assert ids_of(corpus) == ["a/1.mp4", "b/3.mp4"]
    assert corpus.notes == ("left out a folder that cannot be read: a/locked/ (Permission denied)",)


@pytest.mark.usefixtures("locked")
def test_of_many_folders_that_cannot_be_read_some_are_named(tmp_path, read):
    make(tmp_path, "1.mp4", *(f"locked{number}/1.mp4" for number in range(9)))
    notes = read(tmp_path).notes
    assert len(notes) == 6
    assert notes[-1] == "left out 4 more folders that cannot be read"


@pytest.mark.usefixtures("locked")
def test_a_source_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    make(tmp_path / "locked", "1.mp4")
    for source in sources(tmp_path / "locked"):
        with pytest.raises(UserError, match=r"expected a folder that can be read, found .*/locked: Permission denied"):
            read_corpus(source)


def test_a_file_whose_size_cannot_be_read_is_listed(tmp_path, monkeypatch):
    make(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    monkeypatch.setattr("scale_ray.corpus.local_files._size_of", lambda _: None)
    assert LocalFiles(str(tmp_path)).sizes == {"a.mp4": None}


def test_a_loop_of_links_gives_every_file_once(tmp_path, read):
    make(tmp_path, "kick/1.mp4", "hug/2.mp4")
    (tmp_path / "kick" / "all").symlink_to("..")
    (tmp_path / "hug" / "all").symlink_to(tmp_path)
    corpus = read(tmp_path)
    assert ids_of(corpus) == ["hug/2.mp4", "kick/1.mp4"]
    assert corpus.notes == ("left out 2 links to files or folders that are listed anyway",)


def test_a_file_with_links_is_listed_at_its_own_path(tmp_path, read):
    make(tmp_path, "kick/1.mp4")
    (tmp_path / "hug").mkdir()
    (tmp_path / "hug" / "1.mp4").symlink_to("../kick/1.mp4")
    (tmp_path / "also kick").symlink_to("kick")
    corpus = read(tmp_path)
    assert ids_of(corpus) == ["kick/1.mp4"]
    assert corpus.notes == ("left out 2 links to files or folders that are listed anyway",)


def test_a_file_elsewhere_is_listed_at_the_first_of_its_links(tmp_path, read):
    make(tmp_path / "elsewhere", "1.mp4", "more/2.mp4")
    folder = tmp_path / "videos"
    (folder / "hug").mkdir(parents=True)
    (folder / "hug" / "b.mp4").symlink_to(tmp_path / "elsewhere" / "1.mp4")
    (folder / "hug" / "a.mp4").symlink_to("b.mp4")
    (folder / "kick").symlink_to(tmp_path / "elsewhere")
    corpus = read(folder)
    assert ids_of(corpus) == ["hug/a.mp4", "kick/more/2.mp4"]
    assert corpus.videos["size_bytes"].to_pylist() == [5, 5]
    assert corpus.notes == ("left out 2 links to files or folders that are listed anyway",)


def test_a_link_to_a_hidden_file_is_no_hidden_file(tmp_path, read):
    make(tmp_path, ".objects/1")
    (tmp_path / "a.mp4").symlink_to(".objects/1")
    corpus = read(tmp_path)
    assert ids_of(corpus) == ["a.mp4"]
    assert corpus.notes == ()


def test_what_is_no_file_is_counted(tmp_path, read):
    make(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "c.mp4").symlink_to("c.mp4")
    os.mkfifo(tmp_path / "d.mp4")
    corpus = read(tmp_path)
    assert ids_of(corpus) == ["a.mp4"]
    assert corpus.notes == ("left out 3 entries that are no files, such as a link to nothing",)


def test_the_store_is_left_out_through_a_link_too(tmp_path):
    make(tmp_path, "videos/a.mp4", "store/store.json")
    (tmp_path / "videos" / "features").symlink_to(tmp_path / "store")
    corpus = read_corpus(str(tmp_path / "videos"), excluded_folder=str(tmp_path / "store"))
    assert ids_of(corpus) == ["a.mp4"]
    assert corpus.notes == ()


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "**",
        "**/*",
        "*/*.mp4",
        "**/1.mp4",
        "a/**",
        "*/b/**",
        "**/b/*",
        "**/[ab]/**/?.mp4",
        "a**",
        "**/**",
        "*/**/2*",
    ],
)
def test_a_glob_matches_what_the_standard_library_matches(tmp_path, pattern):
    names = ("1.mp4", "2.mkv", "c", ".c", "[1].mp4")
    draw = random.Random(7)
    for _ in range(60):
        make(tmp_path, "/".join([*draw.choices(("a", "b", ".hidden", "A"), k=draw.randint(0, 3)), draw.choice(names)]))
    expected = [
        name
        for name in sorted(set(glob.glob(pattern, root_dir=tmp_path, recursive=True)))
        if (tmp_path / name).is_file()
    ]
    files = LocalFiles(str(tmp_path), pattern.split("/"))
    assert list(files.sizes) == expected
    assert files.notes() == []
