"""A file in the place of a video makes FFmpeg open nothing else: no server, no socket, no other file."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support.servers import free_port
from support.videos import encode

from scale_ray.corpus import read_corpus
from scale_ray.decoding import Decoder, open_video, video_file
from scale_ray.errors import VideoError
from scale_ray.inspection.headers import header_of

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp("video") / "video.ts", "mpeg2video", seconds=1)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A server on the loopback interface; `asked` are the paths of all requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def playlist(target: object) -> str:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n"


def session(port: int) -> str:
    return (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {port} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    )


BOTH_WAYS = pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])


def refused(path: Path, *, remote: bool = False) -> str:
    """The reason for which a file is refused, opened by its path, or as a remote one is, from a file object."""
    with pytest.raises(VideoError) as caught, open_video((lambda: path.open("rb")) if remote else str(path)) as opened:
        pytest.fail(f"opened as {opened.container.format.name}")
    assert caught.value.stage == "open"
    return caught.value.reason


@BOTH_WAYS
def test_a_playlist_sends_no_request(tmp_path, server, remote):
    path = tmp_path / "clip.m3u8"
    path.write_text(playlist(f"http://127.0.0.1:{server.server_port}/marker.ts"))
    reason = refused(path, remote=remote)
    assert server.asked == []
    assert reason == "not a video: a playlist (hls), which may point to other files or servers"


@BOTH_WAYS
@pytest.mark.parametrize("scheme", ["", "file:"])
def test_a_playlist_reads_no_other_file(tmp_path, video, scheme, remote):
    path = tmp_path / "clip.m3u8"
    path.write_text(playlist(f"{scheme}{video}"))
    assert refused(path, remote=remote) == "not a video: a playlist (hls), which may point to other files or servers"


@BOTH_WAYS
def test_a_script_reads_no_other_file(tmp_path, video, remote):
    shutil.copy(video, tmp_path / "other.ts")
    path = tmp_path / "clip.mp4"
    path.write_text("ffconcat version 1.0\nfile other.ts\n")
    assert refused(path, remote=remote) == "not a video: a script (ffconcat), which may point to other files or servers"


@pytest.mark.parametrize("name", ["clip%03d.jpg", "clip%d.png"])
def test_a_name_with_a_pattern_does_not_read_the_files_that_match(tmp_path, name):
    for each in (name, "clip001.jpg", "clip1.png"):
        (tmp_path / each).write_bytes(b"\xff\xd8\xff\xe0 no picture")
    assert (
        refused(tmp_path / name) == "not a readable video: damaged, or of a kind that points to other files or servers"
    )


def while_opened(location: str, look: Callable[[int], int]) -> tuple[str, int]:
    """The reason for which a decoder's child refuses a file, and the most that `look` saw of the child meanwhile."""
    with Decoder(timeout_s=4, memory_gib=8) as decoder, ThreadPoolExecutor(1) as thread:
        with pytest.raises(VideoError):
            decoder.call(header_of, "none", f"{location}.none")  # so that the child has loaded everything
        pid = decoder._process.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (400, 400))
        most, answer = look(pid), thread.submit(decoder.call, header_of, "clip", location)
        while not answer.done():
            most = max(most, look(pid))
        error = answer.exception()
        assert isinstance(error, VideoError)
        return error.reason, most


@LINUX
@BOTH_WAYS
def test_a_script_that_includes_itself_is_not_followed(tmp_path, remote):
    path = tmp_path / "clip.mp4"
    path.write_text("ffconcat version 1.0\nfile clip.mp4\n")
    reason, most = while_opened(path.as_uri() if remote else str(path), lambda pid: len(os.listdir(f"/proc/{pid}/fd")))
    assert most < 50
    assert reason == "not a video: a script (ffconcat), which may point to other files or servers"


@LINUX
@BOTH_WAYS
def test_a_session_description_does_not_listen(tmp_path, remote):
    port = free_port() & ~1
    path = tmp_path / "clip.mp4"
    path.write_text(session(port))

    def look(_: int) -> int:
        return f":{port:04X} " in Path("/proc/net/udp").read_text()

    reason, listening = while_opened(path.as_uri() if remote else str(path), look)
    assert not listening
    assert reason == "not a video: a session description (sdp), which may point to other files or servers"


def test_without_the_list_of_formats_ffmpeg_still_opens_nothing(tmp_path, video, server, monkeypatch):
    """What makes these attacks impossible is that no protocol is allowed; the list only refuses earlier."""
    monkeypatch.setattr(video_file, "_BEGINNINGS", {b"\0none": ""})
    monkeypatch.delitem(video_file._OPENS_NOTHING, "format_whitelist")
    path = tmp_path / "clip.m3u8"
    targets = [f"http://127.0.0.1:{server.server_port}/marker.ts", video, f"file:{video}"]
    for text in (*map(playlist, targets), f"ffconcat version 1.0\nfile '{video}'\n", session(free_port())):
        path.write_text(text)
        for remote in (False, True):
            refused(path, remote=remote)
    assert server.asked == []


def protocols(video: Path) -> list[str]:
    return [
        f"subfile,,start,0,end,0,,:{video}",
        f"concat:{video}|{video}",
        f"file:{video}",
        f"async:{video}",
        f"cache:{video}",
        "data:text/plain;base64,R0lGODlh",
        "pipe:0",
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_path_is_never_a_protocol(video, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="No such file or directory"), open_video(protocols(video)[number]):
        pass


def test_a_manifest_with_protocols_has_no_such_files(video, tmp_path):
    manifest = tmp_path / "videos.csv"
    rows = ['"' + path + '"' for path in protocols(video)]
    manifest.write_text("\n".join(["path", *rows, str(video)]) + "\n")
    rows = read_corpus(str(manifest)).videos.to_pylist()
    with Decoder(timeout_s=20, memory_gib=8) as decoder:
        for row in rows:
            if row["path"] == str(video):
                assert decoder.call(header_of, "id", row["path"]).codec == "mpeg2video"
                continue
            with pytest.raises(VideoError, match="No such file or directory"):
                decoder.call(header_of, "id", row["path"])


@pytest.mark.parametrize(
    "name",
    [
        "a:b.ts",
        "file:a.ts",
        "concat:a|b.ts",
        "subfile,,start,0,end,0,,:a.ts",
        "data:a.ts",
        "http:a.ts",
        "pipe:0",
        "-a.ts",
        "100 %.ts",
        "a%03d.ts",
        "a*[b]?{c}.ts",
        "a\nb\x1b[2J.ts",
        "caf\udce9.ts",
    ],
)
def test_a_video_may_have_any_name(video, tmp_path, monkeypatch, name):
    shutil.copy(video, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name)):
        with open_video(path) as opened:
            assert opened.stream.codec_context.width == 96


def test_metadata_in_another_encoding_than_utf8_does_no_harm(tmp_path):
    path = encode(tmp_path / "old.avi", "mpeg4", seconds=1)
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"caf\xe9", 1))
    with open_video(str(path)) as opened:
        assert opened.stream.codec_context.width == 96
