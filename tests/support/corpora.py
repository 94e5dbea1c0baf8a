"""Folders of files that stand for videos, and what is read of them."""


def make(root, *names):
    """Small files of these names below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")


def rows_of(corpus):
    """Label, group and splits of every video, by id."""
    return {row["video_id"]: (row["label"], row["group"], dict(row["splits"])) for row in corpus.videos.to_pylist()}
