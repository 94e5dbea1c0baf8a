"""Servers that never answer, and those that are not there: one line in a limited time, and nothing that waits."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from scale_ray.corpus import read_corpus
from scale_ray.errors import UserError
from scale_ray.files import locations
from scale_ray.files.requests import ask
from scale_ray.store import FeatureStore


def test_answers_are_in_order_and_errors_are_answers():
    def divided(number):
        return 12 // number

    answers = ask(divided, [1, 2, 0, 4], within_s=5, at_once=2)
    assert [answers[place].result() for place in (0, 1, 3)] == [12, 6, 3]
    assert isinstance(answers[2].exception(), ZeroDivisionError)
    assert ask(divided, [], within_s=5) == []


def test_what_hangs_is_left_alone_and_what_waits_behind_it_is_not_begun():
    released, begun = threading.Event(), []

    def hang(number):
        begun.append(number)
        released.wait(30)

    began_s = time.monotonic()
    answers = ask(hang, range(10), within_s=0.2, at_once=3)
    assert time.monotonic() - began_s < 5
    assert not any(answer.done() for answer in answers)
    released.set()
    answers[2].result(5)
    time.sleep(0.1)
    assert sorted(begun) == [0, 1, 2]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts every connection and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def read(location: str, port: int) -> None:
    place = location.format(port=port)
    if place.endswith("store"):
        FeatureStore(place)
    else:
        read_corpus(place)


S3 = "?scheme=http&endpoint_override=127.0.0.1:{port}"
LOCATIONS = [
    f"s3://bucket/videos{S3}",
    f"s3://bucket/videos/*.mp4{S3}",
    f"s3://bucket/list.csv{S3}",
    "http://127.0.0.1:{port}/list.csv",
    "http://127.0.0.1:{port}/store",
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_silent_server_is_one_line(location, silent_port, monkeypatch):
    monkeypatch.setattr(locations, "ANSWER_S", 0.5)
    began_s = time.monotonic()
    with pytest.raises(UserError, match=r"expected an answer from (s3|http)://\S+, found none within 0 s"):
        read(location, silent_port)
    assert time.monotonic() - began_s < 10


@pytest.mark.slow
@pytest.mark.parametrize("location", LOCATIONS)
def test_a_server_that_is_not_there_is_one_line(location, closed_port):
    with pytest.raises(UserError, match=r"expected to reach (s3|http)://\S+, found: .*([Cc]onnect|NETWORK)") as caught:
        read(location, closed_port)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_request_that_hangs_does_not_keep_the_process_alive(silent_port):
    code = f"""
from scale_ray.corpus import read_corpus
from scale_ray.files import locations
locations.ANSWER_S = 0.5
read_corpus({LOCATIONS[0].format(port=silent_port)!r})
"""
    began_s = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "expected an answer from s3://bucket, found none" in ended.stderr
    assert ended.returncode == 1
    assert time.monotonic() - began_s < 50  # it takes 100 s if the request is repeated ten times
