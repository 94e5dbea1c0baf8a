"""The files of trials: what is written is read again, and damage is one clear line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from scale_ray.errors import UserError
from scale_ray.search import FAILED, FINISHED, STOPPED, TrialResult, TrialResults

KEY = "0123456789abcdef0123"
RESULT = TrialResult(
    setting={
        "sets.mask_ratio": 0.1 + 0.2,
        "sets.set_size": 8,
        "sets.masked_clips": None,
        "objective.candidates": "all",
    },
    seed=2,
    state=FINISHED,
    monitor="validation_knn_top1",
    blocks=[[3, 4], [0, 2], [5, 5]],
    curve=[[10, 0.25], [20, 1 / 3]],
    metrics={"loss": 1e300},
    epochs=20,
    seconds=12.5,
    began_s=1.8e9,
)


@pytest.fixture
def file(tmp_path) -> Path:
    """The file of a finished trial."""
    TrialResults(str(tmp_path)).write(KEY, RESULT)
    [path] = (tmp_path / "trials").iterdir()
    return path


def test_a_result_is_read_as_it_was_written(tmp_path, file):
    results = TrialResults(str(tmp_path))
    assert results.get(KEY) == RESULT
    assert (KEY in results, "other" in results, results.get("other")) == (True, False, None)
    assert RESULT.value == 8 / 11
    assert file.name == f"{KEY}.json"


@pytest.mark.parametrize(("state", "is_done"), [(FINISHED, True), (STOPPED, True), (FAILED, False)])
def test_a_failed_trial_is_not_done_and_its_next_result_replaces_it(tmp_path, state, is_done):
    results = TrialResults(str(tmp_path))
    results.write(KEY, TrialResult({"a": 1}, 0, state, blocks=[[1, 2]] * is_done, reason="s3://user:secret@b: no"))
    for read in (results, TrialResults(str(tmp_path))):
        assert (KEY in read) == is_done
        assert read.get(KEY).reason == "s3://b: no"
        assert math.isnan(read.get(KEY).value) != is_done
    results.write(KEY, RESULT)
    assert TrialResults(str(tmp_path)).get(KEY) == RESULT


def test_numbers_that_are_not_finite_are_written_as_json_and_read_as_nan(tmp_path):
    results = TrialResults(str(tmp_path))
    metrics = {"loss": math.nan, "norm": -math.inf, "top1": np.float32(0.5), "steps": np.int64(3)}
    diverged = TrialResult({}, 0, STOPPED, blocks=[[np.int64(1), 2]], curve=[[np.int64(1), math.inf]], metrics=metrics)
    results.write(KEY, diverged)
    text = (tmp_path / "trials" / f"{KEY}.json").read_text()
    values = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert values["metrics"] == {"loss": None, "norm": None, "top1": 0.5, "steps": 3}
    for read in (results, TrialResults(str(tmp_path))):
        assert read.get(KEY).metrics == pytest.approx(
            {**values["metrics"], "loss": math.nan, "norm": math.nan}, nan_ok=True
        )
        assert math.isnan(read.get(KEY).curve[0][1])


def test_what_could_not_be_read_again_is_not_written(tmp_path, file):
    before = file.read_bytes()
    for result in (
        TrialResult({}, 0, FINISHED),
        TrialResult({}, 0, FINISHED, blocks=[[0, 0]]),
        TrialResult({"a": math.nan}, 0, "unknown", blocks=[[1, 2]]),
    ):
        with pytest.raises(UserError, match=f"{KEY}.json: expected the result of a trial with"):
            TrialResults(str(tmp_path)).write(KEY, result)
    assert [path.read_bytes() for path in file.parent.iterdir()] == [before]


def test_a_write_that_is_interrupted_leaves_the_earlier_result(tmp_path, file, monkeypatch):
    results = TrialResults(str(tmp_path))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.write(KEY, TrialResult({}, 0, FAILED))
    assert list(file.parent.iterdir()) == [file]
    assert results.get(KEY) == TrialResults(str(tmp_path)).get(KEY) == RESULT


WITHOUT = object()
HUGE = 10**400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in ("setting", "seed", "blocks", "monitor", "epochs", "seconds", "began_s")),
        *(
            (name, value)
            for name in ("seed", "epochs", "seconds", "began_s")
            for value in (HUGE, -1, math.nan, "1", True)
        ),
        ("seconds", math.inf),
        ("key", "another"),
        ("state", "running"),
        ("state", "x" * 10_000 + "\n"),
        ("reason", 1),
        ("setting", {"a": [1]}),
        ("setting", {"a\nb": True}),
        ("setting", {"a": math.nan}),
        ("setting", {"a": HUGE}),
        ("blocks", {}),
        ("blocks", []),
        *(("blocks", [[1, 2], block]) for block in ([0, 0], [3, 2], [-1, 2], [1], [1, 2, 3], 1, None, "12")),
        *(("blocks", [[1, number]]) for number in (HUGE, 1e300, math.nan, math.inf, "2", True, [2])),
        *(("curve", [point]) for point in ([1], [HUGE, 0.5], [1, HUGE], [1, math.nan], [None, 0.5], [1, "0.5"], 1)),
        *(("metrics", {"loss": number}) for number in (HUGE, math.inf, math.nan, "1", [1], True)),
        ("metrics", []),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_file(tmp_path, file, name, value):
    values = {**json.loads(file.read_text()), name: value}
    if value is WITHOUT:
        del values[name]
    file.write_text(json.dumps(values))
    refused_in_one_line(tmp_path, file, name)


def refused_in_one_line(folder: Path, file: Path, name: str = "") -> None:
    with pytest.raises(UserError) as refused:
        TrialResults(str(folder))
    message = str(refused.value)
    assert message.startswith(f"{file}: expected the result of a trial")
    assert name in message
    assert "\n" not in message
    assert len(message) < len(str(file)) + 250


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"NaN",
        b"[" * 100_000,
        b'{"seed": 1' + b"0" * 5000 + b"}",
        b'{"setting": "\n"}',
    ],
)
def test_what_is_not_a_json_mapping_is_one_line_that_names_the_file(tmp_path, file, content):
    file.write_bytes(content)
    refused_in_one_line(tmp_path, file)


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path, file):
    content = file.read_bytes()
    for length in range(0, len(content) - 1, 7):
        file.write_bytes(content[:length])
        refused_in_one_line(tmp_path, file)


def test_a_file_under_another_name_is_refused(tmp_path, file):
    renamed = file.rename(file.with_name("ffff.json"))
    refused_in_one_line(tmp_path, renamed, "key ffff, as the file is named, found '0123456789abcdef0123'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path, file):
    file.chmod(0)
    refused_in_one_line(tmp_path, file)


def test_links_folders_and_other_names_are_no_results(tmp_path, file):
    elsewhere = file.rename(tmp_path / "elsewhere.json")
    trials = file.parent
    file.symlink_to(elsewhere)
    (trials / "broken.json").symlink_to("nowhere")
    (trials / "folder.json").mkdir()
    os.mkfifo(trials / "pipe.json")
    (trials / f"{KEY}.json.12345678.unfinished").write_text("{")
    (trials / "notes.txt").write_text("mine")
    results = TrialResults(str(tmp_path))
    assert not any(key in results for key in (KEY, "broken", "folder", "pipe", "notes"))
    before = elsewhere.read_bytes()
    results.write(KEY, TrialResult({}, 0, FAILED))
    assert elsewhere.read_bytes() == before, "the link is replaced, not what it leads to"
    assert not file.is_symlink()


def test_a_sweep_that_has_not_begun_has_no_results(tmp_path):
    assert KEY not in TrialResults(str(tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())
