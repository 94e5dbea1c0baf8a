"""Folders called train, val and test."""

import pytest
from support.corpora import make, rows_of

from scale_ray.corpus.corpus import read_corpus


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("end", ["", "/*/*/*.mp4"])
def test_folders_that_are_named_as_subsets_give_the_splits(tmp_path, scheme, end):
    make(tmp_path, "train/Archery/a.mp4", "train/Surf/at sea/b.mp4", "val/Archery/c.mp4", "Test/Archery/d.mp4")
    make(tmp_path, "train/e.mp4", "notes.txt", "lists/names.txt")
    expected = {
        "Test/Archery/d.mp4": ("Archery", None, {"default": "test"}),
        "lists/names.txt": ("lists", None, {}),
        "notes.txt": (None, None, {}),
        "train/Archery/a.mp4": ("Archery", None, {"default": "train"}),
        "train/Surf/at sea/b.mp4": ("Surf/at sea", None, {"default": "train"}),
        "train/e.mp4": (None, None, {"default": "train"}),
        "val/Archery/c.mp4": ("Archery", None, {"default": "validation"}),
    }
    corpus = read_corpus(f"{scheme}{tmp_path}{end}")
    assert rows_of(corpus).items() <= expected.items()
    assert len(corpus.videos) == (3 if end else 7)
    without = "" if end else "; 2 videos in no split"
    assert corpus.split_note == f"splits as given by the folders train, val and Test{without}"
    assert corpus.notes == ()


@pytest.mark.parametrize("names", [("validation",), ("valid",), ("val", "test")])
def test_without_labelled_test_folders_the_validation_videos_are_the_test_videos(tmp_path, names):
    make(tmp_path, "train/Archery/a.mp4", f"{names[0]}/Archery/b.mp4", *(f"{name}/c.mp4" for name in names[1:]))
    corpus = read_corpus(str(tmp_path))
    splits = {video_id: row[2]["default"] for video_id, row in rows_of(corpus).items()}
    assert splits.pop("train/Archery/a.mp4") == "train"
    assert set(splits.values()) == {"test"}
    assert corpus.split_note == (
        f"splits as given by the folders train{', val and test' if names[1:] else f' and {names[0]}'}"
        "; the validation videos are the test videos, because no other test video has a label"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("train/Archery/a.mp4", "train/Surf/b.mp4"),
        ("train/a.mp4", "test/b.mp4"),
        ("train/Archery/a.mp4", "test/Archery/b.mp4", "Surf/c.mp4"),
        ("test/Archery/a.mp4", "val/Archery/b.mp4"),
        ("Archery/train/a.mp4", "Archery/test/b.mp4"),
        ("data/train/Archery/a.mp4", "data/test/Archery/b.mp4"),
    ],
)
def test_other_folders_that_are_named_as_subsets_are_classes_and_said(tmp_path, names):
    make(tmp_path, *names)
    corpus = read_corpus(str(tmp_path))
    assert {video_id: row[0] for video_id, row in rows_of(corpus).items()} == {
        name: name.rpartition("/")[0] for name in names
    }
    assert "by a hash" in corpus.split_note
    [note] = corpus.notes
    assert note.startswith("found folders called t")
    assert "which are read as parts of class names" in note


def test_a_file_without_a_usual_suffix_counts_if_there_is_no_other(tmp_path):
    make(tmp_path, "train/a/1.mxf", "test/a/2.mxf")
    assert rows_of(read_corpus(str(tmp_path)))["test/a/2.mxf"] == ("a", None, {"default": "test"})
