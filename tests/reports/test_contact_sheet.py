"""The frames of a contact sheet are those of the segments that a store names."""

from __future__ import annotations

import sys

import pyarrow as pa
from support.stores import FINGERPRINT, corpus_of

from scale_ray.errors import VideoError
from scale_ray.reports import frames_of, thumbnails
from scale_ray.store import FeatureStore


def test_a_segment_shows_a_frame_of_its_own(tmp_path, monkeypatch):
    store = FeatureStore.create(str(tmp_path / "s"), FINGERPRINT)
    corpus = corpus_of(a="x", b="x", c="x")
    for name, values in {"start_s": [1.0, None, 4.0], "end_s": [2.0, None, None]}.items():
        corpus = corpus.set_column(corpus.column_names.index(name), name, pa.array(values, pa.float64()))
    store.replace_videos(corpus)
    requests = []

    class Asked:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def decode(self, request, pixels):
            requests.append((request.path, request.start_s, request.end_s))
            raise VideoError("open", "only asked")

    monkeypatch.setattr(sys.modules[frames_of.__module__], "Decoder", Asked)
    assert frames_of(store, ["c", "a", "b"]) == {"c": None, "a": None, "b": None}
    assert requests == [("/videos/c", 4, None), ("/videos/a", 1, 2), ("/videos/b", None, None)]
    list(thumbnails(["/videos/d"]))
    assert requests[-1] == ("/videos/d", None, None)
