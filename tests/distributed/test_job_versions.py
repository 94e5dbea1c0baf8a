"""The versions where a job was submitted, compared with those where it runs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from scale_ray.console import Console
from scale_ray.distributed.job_client import run_job
from scale_ray.distributed.job_versions import VERSIONS_FILE, compare_versions, versions_here, write_versions
from scale_ray.errors import UserError


def changed(folder, **versions: str) -> None:
    (folder / VERSIONS_FILE).write_text(json.dumps({**versions_here(), **versions}))


def test_the_same_versions_are_no_line(tmp_path, capsys):
    write_versions(tmp_path)
    compare_versions(str(tmp_path))
    assert capsys.readouterr().err == ""


def test_the_build_of_a_version_does_not_matter(tmp_path, capsys):
    changed(tmp_path, torch=versions_here()["torch"].partition("+")[0] + "+cu999")
    compare_versions(str(tmp_path))
    assert capsys.readouterr().err == ""


def test_other_versions_are_reported(tmp_path, capsys):
    changed(tmp_path, av="1.2.3")
    compare_versions(str(tmp_path))
    here = versions_here()["av"]
    assert capsys.readouterr().err == f"other versions on this cluster: av {here} (submitted with 1.2.3)\n"


def test_a_missing_library_is_refused(tmp_path):
    changed(tmp_path, decord="0.6.0")
    with pytest.raises(UserError, match=r"expected decord 0\.6\.0 on the cluster as where the job was submitted"):
        compare_versions(str(tmp_path))


@pytest.fixture
def other_ray():
    """A server that answers like Ray's, of an older version."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"version": "4", "ray_version": "2.9.3", "ray_commit": "x"}).encode())

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_ray_is_refused_before_anything_is_sent(other_ray):
    with pytest.raises(UserError, match=r"expected Ray 2\.\d+\S* at .* as here, up to the patch level, found 2\.9\.3"):
        run_job(other_ray, ["backbones"], [], Console())
