"""Paths that data names: they open no driver that writes or asks elsewhere, and send no credentials.

Every server is on loopback and notes what it was asked for.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.attacks import refusal
from support.stores import FINGERPRINT, corpus_of

from scale_ray.config import Extraction, Inspection
from scale_ray.console import Console
from scale_ray.corpus import read_corpus
from scale_ray.embedding import VideoModel
from scale_ray.files.locations import check_from_data, is_below, with_options_of
from scale_ray.inspection.headers import read_headers, select_videos
from scale_ray.reports import frames_of
from scale_ray.store import FeatureStore

TOKEN = "nobodys-token"


class Server:
    """A web server that answers every request with a few bytes, and its address and requests."""

    def __init__(self) -> None:
        requests = self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(f"{self.path} {dict(self.headers)}")
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(b"bytes")

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.server.serve_forever)
    thread.start()
    yield server
    server.server.shutdown()
    thread.join()
    server.server.server_close()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    for name, value in {
        "HF_TOKEN": TOKEN,
        "AWS_ACCESS_KEY_ID": "AKIANOBODYSKEY",
        "AWS_SECRET_ACCESS_KEY": "nobodys-secret",
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        # Whatever should be asked by default is this server, and not the world.
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)


# What each would do: download into a folder, send a token, sign requests, ask a server.
ATTACKS = {
    "filecache": "filecache://http://{server}/x.mp4?target_protocol=http&cache_storage={folder}&same_names=1",
    "simplecache": "simplecache://http://{server}/x.mp4?target_protocol=http&cache_storage={folder}&same_names=1",
    "hf": "hf://datasets/nobody/nothing/x.mp4?endpoint=http://{server}",
    "s3": "s3://bucket/x.mp4?endpoint_override={server}&scheme=http",
    "zip": "zip://x.mp4?fo=http://{server}/x.zip",
    "webhdfs": "webhdfs://{server}/x.mp4",
    "reference": "reference://x.mp4?fo=http://{server}/x.json",
    "local": "local://{folder}/x.mp4?auto_mkdir=1",
}


def attack(name: str, server: Server, folder: Path) -> str:
    return ATTACKS[name].format(server=server.address, folder=folder)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_manifest_reaches_nothing(name: str, server: Server, tmp_path: Path):
    path, cache = attack(name, server, tmp_path / "cache"), tmp_path / "cache"
    (tmp_path / "videos.csv").write_text(f'path\n"{path}"\n')

    def inspect() -> None:
        corpus = read_corpus(str(tmp_path / "videos.csv"))
        read_headers(select_videos(corpus, 10, Inspection().inspect_seed), Extraction(), Console(quiet=True))

    message = refusal(inspect)
    assert not cache.exists()
    assert not server.requests
    assert "videos.csv, row 1: expected a" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["filecache", "hf", "s3", "zip"])
def test_a_store_reaches_nothing(name: str, server: Server, tmp_path: Path):
    """The pictures of `probe` and `neighbours` open the videos that a store names."""
    store = FeatureStore.create(str(tmp_path / "store"), FINGERPRINT)
    corpus = corpus_of(a="x")
    paths = [attack(name, server, tmp_path / "cache")]
    store.replace_videos(corpus.set_column(corpus.column_names.index("path"), "path", [paths]))
    assert frames_of(store, ["a"]) == {"a": None}
    assert not (tmp_path / "cache").exists()
    assert not server.requests


@pytest.mark.parametrize("name", ATTACKS)
def test_a_request_to_a_served_model_reaches_nothing(name: str, server: Server, tmp_path: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    model = served(videos)
    table = model.predict([attack(name, server, tmp_path / "cache")])
    assert table["vector"].tolist() == [None]
    assert not (tmp_path / "cache").exists()
    assert not server.requests


def served(*folders: Path | str) -> VideoModel:
    """A served model whose network must not be reached: it has none."""
    from scale_ray.aggregator import Aggregator
    from scale_ray.backbones import load_backbone
    from scale_ray.config import AggregatorOptions, BackboneOptions, Representing, Sampling
    from scale_ray.store import fingerprint_of

    backbone = load_backbone(BackboneOptions(backbone="shufflenet_v2_x0_5", weights="none", input_px=32), 16)
    origin = fingerprint_of(backbone.identity(), Sampling())
    model = VideoModel(backbone, Aggregator(1024, AggregatorOptions(width=32, layers=1), origin), Representing())
    model.served_folders = tuple(map(str, folders))
    return model


def test_a_served_model_reads_only_below_its_folders(tmp_path: Path, videos: Path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    [source, *_] = sorted((videos / "recede").iterdir())
    for folder in (inside, outside):
        (folder / "video.mp4").write_bytes(source.read_bytes())
    (inside / "link.mp4").symlink_to(outside / "video.mp4")
    paths = ["video.mp4", "link.mp4", "../outside/video.mp4", "", "/etc/hostname"]
    model = served(inside)
    table = model.predict([str(outside / "video.mp4"), *(str(inside / path) for path in paths)])
    assert table["vector"].notna().tolist() == [False, True, False, False, False, False]
    model.served_folders = ()
    [error] = model.predict([str(inside / "video.mp4")])["error"]
    assert "expected a video below nothing, since SCALE_RAY_SERVED_VIDEOS is not set" in error


@pytest.mark.parametrize(
    ("location", "below"),
    [
        ("s3://bucket/videos/a.mp4", True),
        ("s3://bucket/videos", False),
        ("s3://bucket/videos-of-others/a.mp4", False),
        ("s3://bucket/videos/../others/a.mp4", False),
        ("s3://bucket/videos/%2e%2e/others/a.mp4", False),
        ("s3://bucket/videos/..%5cothers/a.mp4", False),
        ("s3://other/videos/a.mp4", False),
        ("s3://bucket@other/videos/a.mp4", False),
        ("http://bucket/videos/a.mp4", False),
        ("/videos/a.mp4", False),
        # Some libraries drop control characters, and resolve what is left.
        ("s3://bucket/videos/.\t./others/a.mp4", False),
        ("s3://bucket/videos/.\n./others/a.mp4", False),
        ("/videos/a\0.mp4", False),
    ],
)
def test_a_prefix_of_uris_holds_what_is_below_it(location: str, below: bool):
    assert is_below(location, ["/elsewhere", "s3://bucket/videos"]) == below


def test_a_file_uri_is_a_local_path_with_its_links(tmp_path: Path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    folder = f"file://{tmp_path}/inside"
    assert is_below(f"{folder}/video.mp4", [folder])
    assert is_below(f"{tmp_path}/inside/video.mp4", [folder])
    assert not is_below(f"{folder}/link.mp4", [folder])


@pytest.mark.parametrize(
    "path",
    [
        "abfss://container@127.0.0.1:9/x.mp4",
        "abfs://somebody.example/x.mp4",
        "az://container@somebody.example/x.mp4",
        "abfss://container:password@account/x.mp4",
        "https://host/.\t./x.mp4",
        "S3://bucket/x.mp4?endpoint_override=host",
    ],
)
def test_a_host_that_would_get_a_token_and_control_characters_are_refused(path: str):
    assert "expected a" in refusal(lambda: check_from_data(path))


def test_harmless_paths_are_as_before():
    for path in (
        "videos/a.mp4",
        "/videos/what?.mp4",
        "file:///videos/a.mp4",
        "s3://bucket/a.mp4",
        "gs://bucket/a b.mp4",
        "abfss://container@account/a.mp4",
        "abfss://container@account.dfs.core.windows.net/a.mp4",
        "az://container/a.mp4",
        "hf://datasets/somebody/something@v1/a.mp4",
        "https://user:password@host/a.mp4?signature=x&expires=1",
    ):
        assert check_from_data(path) == path


def test_the_users_own_options_reach_the_files_of_the_same_bucket_alone():
    given = "s3://bucket/videos?endpoint_override=host"
    assert with_options_of("s3://bucket/videos/a.mp4", given) == "s3://bucket/videos/a.mp4?endpoint_override=host"
    assert with_options_of("s3://other/a.mp4", given) == "s3://other/a.mp4"
    assert with_options_of("/videos/a.mp4", given) == "/videos/a.mp4"
    assert with_options_of("https://bucket/a.mp4", "https://bucket/list.csv?key=1") == "https://bucket/a.mp4"
