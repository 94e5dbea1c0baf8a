"""Joining, splitting and opening paths and URIs, on local disk and from a local HTTP server."""

import functools
import http.server
import itertools
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from scale_ray.corpus.corpus import read_corpus
from scale_ray.errors import UserError
from scale_ray.files import locations
from scale_ray.files.locations import (
    atomic_write,
    exists,
    filesystem_of,
    is_uri,
    join,
    list_files,
    open_input,
    parent,
    read_bytes,
    showable,
)

ODD_NAME = "a b#c%20d?e=f&g+h ü.mp4"
VIDEO = os.urandom(3 * 2**20)


@pytest.mark.parametrize(
    ("location", "inner", "outer"),
    [
        ("/a/b", "/a/b/x y", "/a"),
        ("/a/b/", "/a/b/x y", "/a"),
        ("/", "/x y", None),
        ("s3://bucket/a/b/?region=here", "s3://bucket/a/b/x%20y?region=here", "s3://bucket/a?region=here"),
        ("s3://bucket/a", "s3://bucket/a/x%20y", "s3://bucket"),
        ("s3://bucket", "s3://bucket/x%20y", None),
        ("https://host:80/a%20b/c?key=1", "https://host:80/a%20b/c/x%20y?key=1", "https://host:80/a%20b?key=1"),
        ("file:///a", "file:///a/x%20y", "file:///"),
        ("file:///", "file:///x%20y", None),
    ],
)
def test_join_and_parent(location, inner, outer):
    assert join(location, "x y") == inner
    assert parent(location) == outer


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("postgresql://me:secret@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("s3://key:secret@bucket/a?region=here", "s3://bucket/a"),
        ("s3://key:se/cr?e t'@bucket/a b?x='secret'", "s3://bucket/a%20b"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("/videos/a?b=c d@e", "/videos/a?b=c d@e"),
    ],
)
def test_a_location_is_shown_without_passwords_keys_and_options(location, shown):
    assert showable(location) == shown


def test_join_takes_several_parts_and_encodes_what_a_uri_would_misread():
    assert join("/a", "b", "c/d") == "/a/b/c/d"
    assert join("/a", ODD_NAME) == f"/a/{ODD_NAME}"
    assert join("s3://b?region=x", "split=1", "c/#%?") == "s3://b/split=1/c/%23%25%3F?region=x"


@pytest.mark.parametrize(
    ("location", "inner"),
    [
        ("file:///a%20b/", "/a b"),
        ("s3://bucket?region=eu-west-1", "bucket"),
        ("s3://bucket/a%23/?region=eu-west-1", "bucket/a#"),
        ("gs://anonymous@bucket/a", "bucket/a"),
        ("memory://a/b%20c", "/a/b c"),
    ],
)
def test_a_file_system_gets_the_names_as_they_were_joined(location, inner):
    assert filesystem_of(location)[1] == inner
    assert filesystem_of(join(location, "x", ODD_NAME))[1] == f"{inner}/x/{ODD_NAME}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_gets_the_url_as_it_is(scheme):
    filesystem, path = filesystem_of(f"{scheme}://host/a%20b.mp4?key=1%2F2")
    assert path == f"{scheme}://host/a%20b.mp4?key=1%2F2"
    assert filesystem is filesystem_of(f"{scheme}://host/other.mp4?key=3")[0]


def test_a_joined_uri_is_the_file_of_that_name(tmp_path):
    with atomic_write(join(f"file://{tmp_path}", "runs", ODD_NAME)) as file:
        file.write(b"x")
    assert (tmp_path / "runs" / ODD_NAME).read_bytes() == b"x"
    assert read_bytes(join(str(tmp_path), "runs", ODD_NAME)) == b"x"


def test_a_scheme_stands_at_the_beginning():
    assert is_uri("S3://bucket")
    assert not is_uri("/runs/s3://bucket")
    assert filesystem_of("FILE:///a")[1] == "/a"


def test_a_file_system_is_made_once_for_all_files_of_a_bucket(monkeypatch):
    opened_roots = []

    class FakeFileSystem:
        @staticmethod
        def from_uri(root):
            opened_roots.append(root)
            return "s3", "bucket"

    monkeypatch.setattr(locations.fs, "FileSystem", FakeFileSystem)
    locations._pyarrow_filesystem.cache_clear()
    for name, options in itertools.product("ab", ("", "?region=x")):
        assert filesystem_of(f"s3://bucket/{name}{options}") == ("s3", f"bucket/{name}")
    assert opened_roots == ["s3://bucket/", "s3://bucket/?region=x"]
    locations._pyarrow_filesystem.cache_clear()


def test_an_unknown_scheme_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"expected a path or a URI .*, found 'odd://x/y': Protocol not known: odd$"):
        filesystem_of("odd://x/y")
    with pytest.raises(UserError, match=r"expected a path or a URI .*, found 's3://bucket/a': [^\n]*'odd'$"):
        filesystem_of("s3://bucket/a?odd=1")


def test_a_missing_driver_is_named():
    fsspec.register_implementation("driverless", "no_such_package.Driver", errtxt="Install no-such-package")
    with pytest.raises(UserError, match=r"^driverless://x: expected the package .* none: Install no-such-package$"):
        filesystem_of("driverless://x")


class Server(http.server.SimpleHTTPRequestHandler):
    """A server that sends only whole files, as in the standard library."""

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        try:
            super().copyfile(source, outputfile)
        except ConnectionError:  # the client closed the connection early
            self.close_connection = True


class WithoutRanges(Server):
    """A server that declares in a header that it sends only whole files."""

    def end_headers(self):
        self.send_header("Accept-Ranges", "none")
        super().end_headers()


class WithRanges(Server):
    """A server that sends parts of files and records the requested ranges."""

    def do_GET(self):
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.requested_ranges.append(self.headers.get("Range"))
        if byte_range is None:
            super().do_GET()
            return
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        first, last = int(byte_range[1]), min(int(byte_range[2]), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


@pytest.fixture
def served(tmp_path, request):
    """The address of a server of the files in `tmp_path`, and the list of the ranges requested from it."""
    (tmp_path / ODD_NAME).write_bytes(VIDEO)
    handler = functools.partial(request.param, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requested_ranges = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", server.requested_ranges
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("served", [Server, WithoutRanges, WithRanges], indirect=True)
@pytest.mark.parametrize("small_bytes", [2**10, 2**23])
def test_a_file_of_a_server_is_read_at_any_place(served, small_bytes, monkeypatch):
    monkeypatch.setattr(locations, "_SMALL_BYTES", small_bytes)
    url = join(served[0] + "?token=1", ODD_NAME)
    assert exists(url)
    with open_input(url) as file:
        assert file.read(9) == VIDEO[:9]
        file.seek(2 * 2**20)
        assert file.read(9) == VIDEO[2 * 2**20 :][:9]
        file.seek(-9, os.SEEK_END)
        assert file.read() == VIDEO[-9:]


@pytest.mark.parametrize("served", [Server, WithRanges], indirect=True)
def test_a_file_of_a_server_is_read_whole_and_a_missing_one_is_reported(served):
    assert read_bytes(join(served[0], ODD_NAME)) == VIDEO
    assert not exists(f"{served[0]}/nothing")
    with pytest.raises(FileNotFoundError):
        open_input(f"{served[0]}/nothing")


@pytest.mark.parametrize("served", [WithRanges], indirect=True)
def test_only_the_needed_part_of_a_file_is_requested(served, monkeypatch):
    monkeypatch.setattr(locations, "_SMALL_BYTES", 0)
    with open_input(join(served[0], ODD_NAME)) as file:
        for _ in range(8):
            file.read(2**15)
    assert served[1] == [f"bytes={len(VIDEO) - 1}-{len(VIDEO) - 1}", f"bytes=0-{2**20 + 2**15 - 1}"]


@pytest.mark.parametrize("served", [Server], indirect=True)
def test_a_manifest_of_a_server_and_its_videos(served, tmp_path):
    (tmp_path / "m.csv").write_text(f"path,label\n{ODD_NAME},a\nnothing.mp4,b\n")
    videos = read_corpus(f"{served[0]}/m.csv").videos.to_pylist()
    assert [(video["path"], video["size_bytes"]) for video in videos] == [
        (join(served[0], ODD_NAME), len(VIDEO)),
        (f"{served[0]}/nothing.mp4", None),
    ]


def test_a_folder_of_an_fsspec_driver_is_listed_and_written():
    with atomic_write("memory://locations/hug/a%20b.mp4") as file:
        file.write(b"x")
    videos = read_corpus("memory://locations").videos.to_pylist()
    assert [(video["path"], video["label"]) for video in videos] == [("memory://locations/hug/a%20b.mp4", "hug")]
    with open_input(videos[0]["path"]) as source:
        assert source.read() == b"x"


def test_a_large_file_of_pyarrow_is_read_in_large_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(locations, "_SMALL_BYTES", 0)
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    with open_input(f"file://{tmp_path}/a.mp4") as file:
        assert file.read(9) == VIDEO[:9]
        assert file.raw.tell() == 2**20
        file.seek(-9, os.SEEK_END)
        assert file.read() == VIDEO[-9:]


def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_write(str(path)) as file:
        file.write(b"one")
        (leftover,) = os.listdir(path.parent)
        assert leftover.startswith("a.json.")
        assert leftover.endswith(".unfinished")
    assert os.listdir(path.parent) == ["a.json"]


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail():
        with atomic_write(str(path)) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.read_bytes() == b"old"


def test_files_are_listed_in_order_and_none_where_there_is_no_folder(tmp_path):
    for name in ("b/1", "a", "b/0"):
        with atomic_write(join(str(tmp_path), name)) as file:
            file.write(b"x")
    assert [info.path for info in list_files(str(tmp_path))] == [f"{tmp_path}/{name}" for name in ("a", "b/0", "b/1")]
    assert list_files(f"{tmp_path}/nowhere") == []


def test_a_folder_may_be_made_while_it_is_listed(tmp_path):
    """Arrow looks twice, and refuses a folder that it finds only the second time."""
    ready = threading.Barrier(4)

    def make_or_list(thread: int) -> None:
        for number in range(300):
            ready.wait(timeout=30)
            folder = tmp_path / str(number)
            if thread == 0:
                folder.mkdir()
            else:
                assert list_files(str(folder)) == []

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make_or_list, range(4)))
