"""What a user reads when something is wrong, or asks for help; nothing here starts Ray."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from scale_ray.aggregator.model import Aggregator
from scale_ray.cli.main import cli, main
from scale_ray.clips import VideoGeometry
from scale_ray.config import AggregatorOptions, Sampling
from scale_ray.corpus.corpus import read_corpus
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures, fingerprint_of

TINY = {"backbone": "shufflenet_v2_x0_5", "weights": "random, seed 0", "input_px": 64}


@pytest.fixture
def store(tmp_path, videos) -> Path:
    """A store of made-up features for the sample videos, as another backbone would have left it."""
    location = tmp_path / "store"
    made = FeatureStore.create(str(location), fingerprint_of(TINY, Sampling()))
    corpus = read_corpus(str(videos)).videos
    rng = np.random.default_rng(0)
    for mode, split, clips in (("train", "train", 16), ("eval", "test", 15)):
        of_split = [row for row in corpus.to_pylist() if dict(row["splits"]) == {"default": split}]
        rows = [row for row in of_split if row["path"].endswith(".mp4")]
        features = [
            VideoFeatures(
                row["video_id"],
                rng.normal(size=(clips, 6)).astype(np.float16),
                rng.random((clips, 7), dtype=np.float32),
                VideoGeometry(120, 160, 8.0, 15.0),
            )
            for row in rows
        ]
        made.commit(made.part_name(mode, [video.video_id for video in features]), mode, features)
    made.replace_videos(corpus)
    return location


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def one_line_refusal(capsys, tmp_path, *arguments, job: bool = False) -> str:
    """The refusal's text; asserts exit code 2, one line, and nothing written."""
    before = files_below(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments], job=job)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    refusal = [line for line in printed.err.splitlines() if line.startswith("Error: ")]
    assert len(refusal) == 1
    assert refusal[0] == printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err
    assert files_below(tmp_path) == before
    return refusal[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("extract", "nowhere", "--store", "s"), "expected a folder, a glob or a manifest of videos, found nothing"),
        (("extract", "empty", "--store", "s"), "expected videos, found an empty folder"),
        (("extract", "{videos}", "--store", "s", "--backbone", "r3d_81"), "such as r3d_18"),
        (("extract", "{videos}", "--store", "s", "--backbone", "r3d_18", "--weights", "w.pth"), "found no file"),
        (
            ("extract", "{videos}", "--store", "{store}", "--backbone", "resnet18", "--weights", "none"),
            "backbone 'shufflenet_v2_x0_5' in the store, 'resnet18' asked for",
        ),
        (("extract", "{videos}", "--store", "s", "--clips", "many"), "'many' is not a valid integer"),
        (("extract", "{videos}", "--store", "s", "--crop-px", "300"), "expected in ascending order"),
        (("pretrain", "--store", "{store}", "--run", "r", "--mask-ratio", "1.5"), "in [0, 1), found 1.5"),
        (("pretrain", "--store", "{store}", "--run", "r", "--set-size", "9"), "at most 8, half of the 16 clips"),
        (("pretrain", "--store", "{store}", "--run", "a/b"), "expected a name of letters"),
        (("pretrain", "--store", "nowhere", "--run", "r"), "expected a feature store"),
        (("pretrain", "--run", "r"), "Missing option '--store'"),
        (("probe", "--store", "{store}", "--checkpoint", "nothing"), "expected the name of a finished run"),
        (("probe", "--store", "{store}", "--checkpoint", "{wide}"), "width 6 (backbone shufflenet_v2_x0_5), found one"),
        (("probe", "--store", "{store}", "--checkpoint", "{other}"), "for weights 'random, seed 0', found one for"),
        (("sweep", "--store", "{store}", "--mask-ratio", "0.25,1.5"), "in [0, 1), found 1.5"),
        (
            ("sweep", "--store", "{store}", "--set-size", "4,nine"),
            "set_size: expected a value of type int, found 'nine'",
        ),
        (("sweep", "--store", "{store}", "--width", "32..256"), "found 35, in the range 32..256; list the values"),
        (("sweep", "--store", "{store}", "--patience", "3", "--held-out-share", "0.1"), "expected 0.0 in a sweep"),
        (("sweep", "--store", "{store}", "--set-size", "4,16"), "at most 8, half of the 16 clips"),
        (("store", "nowhere"), "expected a feature store"),
        (("pretrain", "--config", "none.yaml", "--store", "s", "--run", "r"), "expected a YAML file"),
        (("pretrain", "--config", "bad.yaml", "--store", "s", "--run", "r"), "sets.maskratio: unknown option"),
        (("extarct",), "No such command 'extarct'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, videos, store, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("sets:\n  maskratio: 0.2\n")
    options = AggregatorOptions(width=32)
    Aggregator(99, options, TINY).save(str(tmp_path / "wide"))
    Aggregator(6, options, {**TINY, "weights": "sha256:1"}).save(str(tmp_path / "other"))
    places = {"videos": videos, "store": store, "wide": tmp_path / "wide", "other": tmp_path / "other"}
    refusal = one_line_refusal(capsys, tmp_path, *(argument.format(**places) for argument in arguments))
    assert expected in refusal


def test_a_job_wants_paths_that_stay(capsys, tmp_path, monkeypatch, videos):
    monkeypatch.chdir(tmp_path)
    refusal = one_line_refusal(capsys, tmp_path, "extract", videos, "--store", "features", job=True)
    assert "--store: expected an absolute path or a URI in a job, found 'features'" in refusal


def test_no_cluster_at_an_address_is_refused(capsys, tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--store", str(store), "--run", "r", "--address", "127.0.0.1:1"])
    assert ended.value.code == 2
    assert "Error: address: expected a Ray cluster at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_probe_of_made_up_features_says_chance(capsys, tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    Aggregator(6, AggregatorOptions(width=32), TINY).save(str(tmp_path / "a"))
    with pytest.raises(SystemExit) as ended:
        main(["probe", "--store", str(store), "--checkpoint", "a", "--json", "--probe-min-steps", "20"])
    assert ended.value.code == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["representation"] for row in table["rows"]] == [
        "position and geometry alone",
        "backbone feature alone",
        "with random aggregator",
        "with trained aggregator",
        "trained aggregator's set token alone",
    ]
    metrics = [row["metrics"][probe] for row in table["rows"] for probe in ("knn_top1", "linear_top1")]
    assert all(0 <= of["low"] <= of["high"] <= 1 and 0 <= of["value"] <= 1 for of in metrics)


def test_a_configuration_file_sets_defaults_and_flags_go_on_top(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("scale_ray.stages.pretrain.pretrain", lambda *_, **given: seen.update(given) or 1 / 0)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"sets": {"mask_ratio": 0.4, "set_size": 5}, "probing": {"knn_k": 3}}))
    arguments = ["pretrain", "--store", "s", "--run", "r", "--config", str(path), "--set-size", "6"]
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, ZeroDivisionError)
    assert (seen["config"].sets.mask_ratio, seen["config"].sets.set_size) == (0.4, 6)


def test_options_come_from_the_environment_too(monkeypatch):
    seen = {}
    monkeypatch.setattr("scale_ray.stages.pretrain.pretrain", lambda *_, **given: seen.update(given) or 1 / 0)
    CliRunner().invoke(cli, ["pretrain", "--store", "s", "--run", "r"], env={"SCALE_RAY_MASK_RATIO": "0.6"})
    assert seen["config"].sets.mask_ratio == 0.6


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_defaults(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 60
    whole = CliRunner().invoke(cli, [name, "--help-all"])
    if "--help-all" in result.output:
        assert len(whole.output) > len(result.output)


def test_a_store_is_described(capsys, store):
    with pytest.raises(SystemExit) as ended:
        main(["store", str(store)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "shufflenet_v2_x0_5, weights random, seed 0, 64 px" in printed
    assert "4 classes" in printed


def test_a_store_is_compacted_and_verified(capsys, store):
    with pytest.raises(SystemExit) as ended:
        main(["store", str(store), "--compact", "--verify"])
    assert ended.value.code == 0
    assert "verified  2 shards, no errors" in capsys.readouterr().out
    shard = sorted((store / "features").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["store", str(store), "--verify", "--json"])
    assert ended.value.code == 1
    assert shard.name in json.loads(capsys.readouterr().out)["wrong"][0]


def test_backbones_are_listed(capsys):
    names = ["r3d_18", "mobilenet_v3_small", "slow_r50"]
    with pytest.raises(SystemExit) as ended:
        main(["backbones", *names, "--json"])
    assert ended.value.code == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)["backbones"]}
    assert [listed[name]["feature_width"] for name in names] == [512, 576, 2048]
    assert [listed[name]["sees_video"] for name in names] == [True, False, True]
    with pytest.raises(SystemExit):
        main(["backbones", "mvit_v2_s", "shufflenet_v2_x0_5"])
    head, mvit, shufflenet, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "sees", "width", "px", "frames", "parameters/M", "GFLOP/clip"]
    assert mvit.split()[:5] == ["mvit_v2_s", "video", "768", "224", "16"]
    assert shufflenet.split()[:5] == ["shufflenet_v2_x0_5", "image", "1024", "224", "any"]
    assert len(head) == len(mvit) == len(shufflenet)
