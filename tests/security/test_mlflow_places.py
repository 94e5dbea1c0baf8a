"""The database in a runs folder from elsewhere: it does not say where results are written, or what the page serves."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.attacks import refusal

from scale_ray.config import Tracking
from scale_ray.tracking import Experiment, server_command

pytestmark = pytest.mark.slow  # MLflow makes its database


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with a run of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = tmp_path / "runs"
    record = Experiment(Tracking(), str(runs)).start("first", {})
    record.content(b"result", "result.txt")
    record.end()
    return runs


def changed(runs: Path, statement: str, place: str) -> None:
    with closing(sqlite3.connect(runs / "mlflow.db")) as connection:
        connection.execute(statement, (place,))
        connection.commit()


STATEMENTS = {
    "experiment": "UPDATE experiments SET artifact_location = ? WHERE experiment_id != 0",
    "run": "UPDATE runs SET artifact_uri = ?",
}


@pytest.mark.parametrize("what", STATEMENTS)
@pytest.mark.parametrize(
    "place", ["file://{folder}/home", "{folder}/home", "http://127.0.0.1:9/steal", "{folder}/runs/../home"]
)
def test_places_elsewhere_are_refused(what: str, place: str, runs: Path, tmp_path: Path):
    (tmp_path / "home").mkdir()
    changed(runs, STATEMENTS[what], place.format(folder=tmp_path))
    for use in (
        lambda: Experiment(Tracking(), str(runs)).start("second", {}).content(b"", "x.txt"),
        lambda: server_command(Tracking(), str(runs), "127.0.0.1", 5000),
    ):
        message = refusal(use)
        assert not list((tmp_path / "home").iterdir())
        assert f"expected a database with all files below {runs}" in message


def test_a_database_that_the_user_names_is_the_users(runs: Path, tmp_path: Path):
    (tmp_path / "home").mkdir()
    changed(runs, STATEMENTS["run"], f"file://{tmp_path}/home")
    named = Tracking(tracking_uri=f"sqlite:///{runs}/mlflow.db")
    assert server_command(named, str(runs), "127.0.0.1", 5000)


def test_a_database_that_cannot_be_read_is_not_taken_for_a_harmless_one(runs: Path):
    (runs / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"damaged" * 100)
    message = refusal(lambda: server_command(Tracking(), str(runs), "127.0.0.1", 5000))
    assert message.startswith("runs: expected a database that can be read, found ")


def test_runs_that_were_moved_are_served(runs: Path, tmp_path: Path):
    runs.rename(tmp_path / "moved")
    assert server_command(Tracking(), str(tmp_path / "moved"), "127.0.0.1", 5000)
