"""What a command sends to a cluster; nothing here starts Ray or connects to anything."""

from __future__ import annotations

import pytest
import yaml

from scale_ray.cli.main import main
from scale_ray.distributed import job_client

HEAD = "http://head:8265"
EXTRACT = ("extract", "/videos", "--store", "/store")


@pytest.fixture
def sent(monkeypatch) -> list[tuple]:
    """The calls that would have sent a job."""
    calls: list[tuple] = []

    def run_job(address, arguments, backbones, console) -> int:
        calls.append((address, list(arguments), list(backbones)))
        return 3

    monkeypatch.setattr(job_client, "run_job", run_job)
    return calls


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def refusal(capsys, *arguments: str) -> str:
    assert run(*arguments) == 2
    return capsys.readouterr().err


def test_the_exit_code_is_that_of_the_job(sent):
    assert run(*EXTRACT, "--address", HEAD) == 3
    assert sent == [(HEAD, ["extract", "--store=/store", "--", "/videos"], [])]


def test_values_of_flags_files_and_the_environment_are_sent(sent, tmp_path, monkeypatch):
    config = tmp_path / "options.yaml"
    config.write_text(yaml.safe_dump({"sampling": {"clips": 4}, "backbone": {"pixel_mean": [0.5, 0.4, 0.3]}}))
    monkeypatch.setenv("SCALE_RAY_ACTORS", "3")
    run(*EXTRACT, "--config", str(config), "--retry-failed", "-q", "--address", HEAD)
    [(_, arguments, _)] = sent
    assert sorted(arguments[1:-2]) == [
        "--actors=3",
        "--clips=4",
        "--pixel-mean=0.5,0.4,0.3",
        "--quiet",
        "--retry-failed",
        "--store=/store",
    ]


def test_a_sweep_sends_its_lists_and_ranges_as_they_are_written(sent):
    run("sweep", "--store", "/s", "--runs", "/r", "--mask-ratio", "0.15,0.5", "--learning-rate", "log:1e-4..1e-2",
        "--try", "aggregator.layers=1,2", "--try", "sets.set_size=4,8", "--address", HEAD)  # fmt: skip
    [(_, arguments, _)] = sent
    assert "--mask-ratio=0.15,0.5" in arguments
    assert "--learning-rate=log:1e-4..1e-2" in arguments
    assert arguments[arguments.index("--try") :][:4] == [
        "--try",
        "aggregator.layers=1,2",
        "--try",
        "sets.set_size=4,8",
    ]


def test_the_tracking_uri_of_the_environment_goes_along(sent, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    run("pretrain", "--store", "/s", "--runs", "/r", "--run", "a", "--address", HEAD)
    assert sent[0][1][-2:] == ["--tracking-uri", "http://mlflow:5000"]


def test_ray_address_may_name_the_job_server(sent, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", HEAD)
    run(*EXTRACT)
    assert sent[0][0] == HEAD


@pytest.mark.parametrize("command", ["probe", "neighbours x", "export --out /o", "inspect", "store", "backbones"])
def test_commands_without_ray_can_be_jobs_as_well(sent, command):
    needed = {
        "probe": ["--store", "/s", "--checkpoint", "c", "--runs", "/r"],
        "neighbours": ["--store", "/s", "--checkpoint", "c", "--runs", "/r"],
        "export": ["--checkpoint", "c", "--runs", "/r"],
        "inspect": ["/videos"],
        "store": ["/s"],
        "backbones": [],
    }
    name, *rest = command.split()
    assert run(name, *rest, *needed[name], "--address", HEAD) == 3
    assert sent[0][1][0] == name


def test_another_address_is_refused_by_a_command_without_ray(capsys, sent):
    text = refusal(capsys, "store", "/s", "--address", "10.0.0.5:6379")
    assert "address: expected http://HEAD:8265, for a command that needs no Ray, found '10.0.0.5:6379'" in text
    assert not sent


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("extract", "videos", "--store", "/s"), "VIDEOS: expected an absolute path or a URI in a job, found 'videos'"),
        (("extract", "/v", "--store", "s"), "--store: expected an absolute path or a URI in a job, found 's'"),
        ((*EXTRACT, "--weights", "w.pt"), "--weights: expected an absolute path or a URI in a job, found 'w.pt'"),
        ((*EXTRACT, "--weights", "none,w.pt", "--backbone", "r3d_18,s3d"), "found 'w.pt'"),
        (("pretrain", "--store", "/s", "--run", "a"), "--runs: expected an absolute path or a URI in a job"),
        ((*EXTRACT, "--clips", "0"), "clips: expected a value at least 2, found 0"),
    ],
)
def test_what_a_job_could_not_use_is_refused_before_it_is_sent(capsys, sent, arguments, expected):
    assert expected in refusal(capsys, *arguments, "--address", HEAD)
    assert not sent


@pytest.mark.parametrize(
    ("option", "secret"),
    [
        (("--tracking-uri", "postgresql://me:sesame@db/x"), "user or password in a URI"),
        (("--tracking-uri", "https://me:sesame@mlflow"), "user or password in a URI"),
        (("--tracking-uri", "postgresql://me:se/sesame@db/x"), "user or password in a URI"),
        (("--tracking-uri", "postgresql://db:sesame@db/x"), "user or password in a URI"),
        (("--runs", "s3://bucket/runs?access_key=AB&secret_key=CD"), "option access_key of a URI"),
    ],
)
def test_a_secret_among_the_arguments_is_refused(capsys, sent, option, secret):
    text = refusal(capsys, "pretrain", "--store", "/s", "--runs", "/r", "--run", "a", *option, "--address", HEAD)
    assert f"expected no {secret} in the arguments of a job" in text
    assert "sesame" not in text
    assert "CD" not in text
    assert not sent


def test_modules_of_custom_backbones_are_named(sent):
    run(*EXTRACT, "--backbone", "mine.nets:small,r3d_18", "--address", HEAD)
    assert sent[0][2] == ["mine.nets"]


def test_modules_of_an_aggregators_backbone_are_named_by_an_option(sent):
    arguments = ("embed", "/videos", "--checkpoint", "c", "--runs", "/r", "--out", "/o", "--send-modules", "mine,other")
    run(*arguments, "--address", HEAD)
    assert sent[0][2] == ["mine", "other"]
    assert not any("send-modules" in argument for argument in sent[0][1])


def test_a_server_that_does_not_answer_is_one_line(capsys):
    text = refusal(capsys, *EXTRACT, "--address", "http://127.0.0.1:9")
    assert "address: expected Ray's job server at http://127.0.0.1:9, found none that answers" in text
    assert len(text.splitlines()) == 1
