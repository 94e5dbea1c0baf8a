"""Other users and other machines cannot reach a local Ray: its files, its token, its ports."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.command import PROJECT, Extracted

from scale_ray.config import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# What of a local Ray and its training listens on other than loopback addresses: nothing.
OPEN_TO_THE_NETWORK: set[str] = set()

FACTS = """
import json, os, stat, sys, time
from pathlib import Path
import psutil
import ray
from scale_ray.config import Cluster
from scale_ray.distributed.cluster import connected

def environment():
    return dict(os.environ)

def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)

facts = {}
with connected(Cluster(cpus=1)):
    facts["environment"] = ray.get(ray.remote(environment).remote())
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    facts["session"] = str(session)
    facts["modes"] = {str(path): mode(path) for path in (session, *session.parents)}
    facts["socket_characters"] = max(len(str(path)) for path in (session / "sockets").iterdir())
    facts["token"] = mode(Path.home() / ".ray" / "auth_token")
    facts["token_folder"] = mode(Path.home() / ".ray")
    facts["asks_for_token"] = ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.TOKEN
    time.sleep(3)  # the agents open their ports last
    me = psutil.Process()
    facts["listening"] = [
        (process.name(), connection.laddr.ip)
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    ]
facts["left"] = session.exists()
facts["temporary"] = os.environ.get("RAY_TMPDIR")
print(json.dumps(facts))
"""


def as_a_user(home: Path) -> dict[str, str]:
    """The environment of a user with a home of their own, who has set nothing of Ray's, and a usual umask."""
    home.mkdir(exist_ok=True)
    return {**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, "HOME": str(home)}


def run(home: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**as_a_user(home), "PYTHONPATH": str(PROJECT), **environment},
        umask=0o022,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    ended = run(tmp_path_factory.mktemp("user") / "home", FACTS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return json.loads(ended.stdout)


def test_only_the_user_reads_the_token(facts: dict[str, Any]):
    assert facts["token"] == 0o600
    assert facts["token_folder"] == 0o700


def test_the_session_is_in_a_folder_that_only_the_user_enters(facts: dict[str, Any]):
    assert any(mode == 0o700 for path, mode in facts["modes"].items() if path.startswith("/tmp/")), facts["modes"]
    assert facts["socket_characters"] <= 103
    assert not facts["left"]
    assert facts["temporary"] is None


def test_a_local_ray_asks_for_a_token_and_its_workers_have_it(facts: dict[str, Any]):
    assert facts["asks_for_token"]
    assert facts["environment"]["RAY_AUTH_MODE"] == "token"


def test_a_local_ray_listens_on_loopback_only(facts: dict[str, Any]):
    assert len(facts["listening"]) >= 6, "the driver, the head, two of the node, the agents, a worker"
    assert {name for name, ip in facts["listening"] if not is_loopback(ip)} == OPEN_TO_THE_NETWORK


def is_loopback(ip: str) -> bool:
    return ip.removeprefix("::ffff:").startswith("127.") or ip == "::1"


def test_a_training_listens_on_loopback_only(extracted: Extracted, tmp_path: Path):
    options = ("--epochs", "3", "--batch", "8", "--prediction-hidden", "8", "--target-hidden", "8", "--cpus", "2")
    command = ("pretrain", "--store", extracted.store, "--runs", tmp_path / "runs", "--run", "r", "--workers", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "scale_ray", *map(str, (*command, *options))], env=as_a_user(tmp_path / "home")
    )
    seen: set[tuple[str, str]] = set()
    while process.poll() is None:
        seen |= listening(process.pid)
        time.sleep(0.2)
    assert process.returncode == 0
    assert any("Train" in name for name, _ in seen), seen
    assert {name for name, ip in seen if not is_loopback(ip)} == OPEN_TO_THE_NETWORK


def listening(pid: int) -> set[tuple[str, str]]:
    """Name and address of whatever listens for a process or its children."""
    found = set()
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            connections = process.net_connections("inet")
            title = " ".join(process.cmdline())[:40]
            found |= {(title, of.laddr.ip) for of in connections if of.status == psutil.CONN_LISTEN}
    except psutil.Error:  # a process has just ended
        pass
    return found


def test_a_failed_run_keeps_the_logs_and_says_where(tmp_path: Path):
    code = (
        "from scale_ray.config import Cluster\nfrom scale_ray.distributed.cluster import connected\n"
        "with connected(Cluster(cpus=1)):\n    1 / 0\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as chosen:  # short enough for sockets
        ended = run(tmp_path / "home", code, RAY_TMPDIR=chosen)
        [folder] = Path(chosen).glob("scale-ray-*")
        last = ["ZeroDivisionError: division by zero", f"The logs of Ray are in {folder}."]
        assert ended.stderr.splitlines()[-2:] == last
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.glob("ray/session_*/logs/gcs_server*"))


def test_a_chosen_folder_too_long_for_sockets_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from scale_ray.distributed.cluster import connected
    from scale_ray.errors import UserError

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 80)))
    expected = r"expected a local Ray to start .*, found: .*107 bytes"
    with pytest.raises(UserError, match=expected), connected(Cluster(cpus=1)):
        pass


def test_a_token_that_others_could_read_is_taken_from_them_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from scale_ray.distributed.private_ray import create_token, protect_token

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    protect_token()
    assert not token.exists()
    create_token()
    first = token.read_text()
    assert (len(first), stat.S_IMODE(token.stat().st_mode)) == (64, 0o600)
    create_token()
    assert token.read_text() == first
    assert list(token.parent.iterdir()) == [token]
    protect_token()
    assert not caplog.messages

    token.chmod(0o644)
    protect_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "other users of this machine could read" in caplog.messages[-1]

    elsewhere = tmp_path / "token"
    elsewhere.write_text("secret")
    elsewhere.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(elsewhere))
    protect_token()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o644
    assert caplog.messages[-1].endswith("(chmod 600)")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    protect_token()
    assert len(caplog.messages) == 2


def test_a_token_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from scale_ray.distributed.cluster import connected
    from scale_ray.errors import UserError

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    (tmp_path / ".ray").write_text("not a folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"expected to write Ray's token to .*, found: "), connected(Cluster(cpus=1)):
        pass
