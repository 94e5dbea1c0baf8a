"""Facts of a corpus from its headers, and the estimated cost of its extraction."""

import json
import math
import shutil

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from scale_ray.backbones import load_backbone
from scale_ray.cli.main import cli, main
from scale_ray.clips import VideoGeometry
from scale_ray.config import BackboneOptions, Extraction, Sampling
from scale_ray.console import Console
from scale_ray.corpus.corpus import read_corpus
from scale_ray.corpus.sample_videos import BROKEN, MOTIONS
from scale_ray.errors import VideoError
from scale_ray.inspection import trials as trials_module
from scale_ray.inspection.corpus_facts import Spread, facts_of_corpus
from scale_ray.inspection.cost import (
    BackboneTrial,
    DecodingTrial,
    Machine,
    Range,
    estimate,
    store_bytes,
    videos_by_mode,
)
from scale_ray.inspection.headers import Header, header_of, read_headers, select_videos
from scale_ray.inspection.trials import spread_sample, try_backbone, try_decoding
from scale_ray.store.feature_store import FeatureStore
from scale_ray.store.schema import VideoFeatures, fingerprint_of

SMALL = ("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--input-px", "32")
SAMPLING = Sampling(clips=2, frames=4, eval_times=3, eval_crops=1)


def inspect(*arguments: object) -> Result:
    """Run the command in this process; `return_value` of the result is its exit code."""
    result = CliRunner().invoke(cli, ["inspect", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture(scope="module", autouse=True)
def _few_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials_module, "_MAX_BATCHES", 3)
        yield


@pytest.fixture(scope="module")
def inspected(videos):
    return inspect(videos, *SMALL, "--eval-input-px", 37, "--frames", 2, "--inspect-sample", 3, "--json")


def test_the_headers_of_a_corpus_are_counted(inspected, videos):
    facts = json.loads(inspected.stdout)["corpus"]
    assert (facts["num_files"], facts["num_opened"], facts["num_readable"]) == (35, 35, 32)
    assert facts["size_bytes"] == sum(path.stat().st_size for path in videos.rglob("*") if path.is_file())
    assert facts["hours"] == pytest.approx(32 * 8 / 3600, rel=0.01)
    assert facts["duration_s"] == pytest.approx({"min": 8, "median": 8, "max": 8}, abs=0.1)
    assert facts["fps"] == {"min": 15, "median": 15, "max": 15}
    assert (facts["sizes"], facts["codecs"]) == ({"160x120": 32}, {"h264": 32})
    assert facts["containers"] == {"QuickTime / MOV": 32}
    assert facts["labels"] == {motion: 11 if motion == "approach" else 8 for motion in MOTIONS}
    subsets = [dict(splits)["default"] for splits in read_corpus(str(videos)).videos["splits"].to_pylist()]
    assert facts["splits"] == {"default": {subset: subsets.count(subset) for subset in ("train", "test")}}


def test_unreadable_files_are_named_with_their_reasons_and_end_in_exit_code_3(inspected):
    assert inspected.return_value == 3
    unreadable = json.loads(inspected.stdout)["corpus"]["unreadable"]
    reasons = {entry["video_id"]: entry["reason"] for entry in unreadable}
    assert sorted(reasons) == sorted(f"approach/{name}" for name in BROKEN)
    assert "the file is empty" in reasons["approach/empty.mp4"]
    assert {entry["stage"] for entry in unreadable} == {"open"}


def test_the_estimate_is_of_the_readable_videos_and_their_modes(inspected, videos):
    values = json.loads(inspected.stdout)
    cost = values["estimate"]
    rows = [row for row in read_corpus(str(videos)).videos.to_pylist() if not row["path"].endswith(BROKEN)]
    num_test = sum(dict(row["splits"]) == {"default": "test"} for row in rows)
    assert cost["num_videos"] == {"train": 32 - num_test, "eval": num_test}
    assert cost["num_clips"] == 16 * (32 - num_test) + 15 * num_test
    decoding = values["sample"]["decoding"]
    assert len(decoding) == 3 * 2
    assert {trial["mode"] for trial in decoding} == {"train", "eval"}
    assert cost["read_s"] is None
    for name in ("decode_core_s", "backbone_device_s", "wall_s"):
        assert 0 < cost[name]["low"] <= cost[name]["estimate"] <= cost[name]["high"]
    # Each input size is timed: that of eval is larger.
    timed = [(t["feature_width"], t["input_px"], t["modes"]) for t in values["sample"]["backbones"]]
    assert timed == [(1024, 32, ["train"]), (1024, 37, ["eval"])]


def test_the_text_is_short_and_says_it_all(videos):
    result = inspect(videos, *SMALL, "--frames", 2, "--clips", 2, "--inspect-sample", 1, "--mode", "train")
    lines = result.stdout.splitlines()
    assert len(lines) <= 30
    assert "35 files" in lines[0]
    assert "32 readable videos" in lines[0]
    heads = [line[2:].split("  ")[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert heads == [
        *("length", "containers", "codecs", "sizes", "frame rate", "classes", "split", "unreadable"),
        *("to do", "decoding", "reading", "backbone", "wall time", "bottleneck"),
    ]
    assert "32 in mode train: 64 clips" in result.stdout
    assert "not measured: local files" in result.stdout
    assert "headers: 35 files" in result.stderr
    assert max(map(len, lines)) <= 150


def test_without_a_sample_there_is_no_estimate_and_good_videos_end_in_0(videos, tmp_path):
    shutil.copytree(videos / "recede", tmp_path / "good")
    result = inspect(tmp_path / "good", "--inspect-sample", 0, "--json", "--quiet")
    assert result.return_value == 0
    assert result.stderr == ""
    values = json.loads(result.stdout)
    assert (values["sample"], values["estimate"]) == (None, None)
    assert values["corpus"]["unreadable"] == []
    assert values["corpus"]["labels"] == {}


@pytest.mark.slow
def test_of_a_large_corpus_a_seeded_sample_is_opened_and_scaled_up(videos):
    def facts(seed: int) -> dict:
        result = inspect(videos, "--inspect-headers", 7, "--inspect-seed", seed, "--inspect-sample", 0, "--json")
        return json.loads(result.stdout)["corpus"]

    first = facts(0)
    assert (first["num_files"], first["num_opened"]) == (35, 7)
    readable = 7 - len(first["unreadable"])
    assert first["num_readable"] == 5 * readable
    assert first["hours"] == pytest.approx(5 * readable * 8 / 3600, rel=0.01)
    assert sum(first["labels"].values()) == 35
    assert facts(0) == first
    assert any(facts(seed)["unreadable"] != first["unreadable"] for seed in range(1, 6))
    text = inspect(videos, "--inspect-headers", 7, "--inspect-sample", 0).stdout
    assert f"about {first['num_readable']} readable videos" in text
    assert "7 files drawn at random" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "found nothing at"),
        (("{videos}", "--inspect-headers", "0"), "inspect_headers: expected a value at least 1, found 0"),
        (("{videos}", "--backbone", "resnet999"), "resnet999"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(videos, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *(argument.format(videos=videos) for argument in arguments)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_header_of_a_text_or_a_missing_file_is_refused(videos):
    with pytest.raises(VideoError):
        header_of("text", str(videos / "approach" / "notes.txt"))
    with pytest.raises(VideoError, match="No such file"):
        header_of("none", str(videos / "none.mp4"))


def test_a_spread_leaves_out_what_is_not_known():
    assert Spread.of([3.0, None, 1.0, 2.0]) == Spread(1, 2, 3)
    assert Spread.of([None]) is None


def headers(*lengths_s: float | None) -> list[Header]:
    return [Header(f"{n:03d}", "AVI", "h264", 160, 120, 15.0, length) for n, length in enumerate(lengths_s)]


def test_the_sample_is_spread_over_the_lengths():
    shuffled = headers(*np.random.default_rng(0).permutation(100).astype(float))
    drawn = spread_sample(shuffled, 10, 0)
    assert [int(header.duration_s // 10) for header in drawn] == list(range(10))
    assert spread_sample(shuffled, 10, 0) == drawn
    assert spread_sample(shuffled, 10, 1) != drawn
    two_videos = headers(1.0, None)
    assert sorted(header.video_id for header in spread_sample(two_videos, 12, 0)) == ["000", "001"]


def test_decoding_is_tried_in_every_mode_and_reading_where_files_are_remote(videos):
    intact, empty = videos / "approach" / "approach_001.mp4", videos / "approach" / "empty.mp4"
    local, remote, bad, absent = headers(8.0, 8.0, 0.0, 0.0)
    trials, unreadable, num_turned = try_decoding(
        [
            (bad, str(empty)),
            (local, str(intact)),
            (remote, f"file://{intact}"),
            (absent, f"file://{videos}/none.mp4"),
        ],
        {"train": (32, 48), "eval": (37, 48)},
        SAMPLING,
        Extraction(),
        Console(quiet=True),
    )
    assert [(trial.video_id, trial.mode) for trial in trials] == [
        *((local.video_id, "train"), (local.video_id, "eval")),
        *((remote.video_id, "train"), (remote.video_id, "eval")),
    ]
    assert all(0 < trial.decode_s < 30 for trial in trials)
    assert [trial.read_s is None for trial in trials] == [True, True, False, False]
    assert [(file.video_id, file.stage) for file in unreadable] == [(bad.video_id, "open"), (absent.video_id, "open")]
    assert num_turned == 0


def test_a_video_shown_turned_by_a_quarter_is_counted(videos, tmp_path):
    turned = tmp_path / "turned.mp4"
    with (
        av.open(str(videos / "approach" / "approach_001.mp4")) as source,
        av.open(str(turned), "w") as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(90)
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    header = header_of("turned", str(turned))
    assert (header.width_px, header.height_px) == (160, 120)
    assert try_decoding([(header, str(turned))], {"train": [32]}, SAMPLING, Extraction(), Console(quiet=True))[2] == 1


def test_a_backbone_is_timed_and_leaves_the_threads_alone():
    encoder = load_backbone(
        BackboneOptions(backbone="shufflenet_v2_x0_5", weights="none", input_px=32, eval_input_px=37), 4
    )
    threads = torch.get_num_threads()
    machine = Machine(cores=2, decoders=1, devices=1, device="cpu", threads=3 - threads)
    trial = try_backbone(encoder, ("eval",), 4, 3, machine)
    assert (trial.name, trial.input_px, trial.modes, trial.feature_width, trial.batch_clips) == (
        *("shufflenet_v2_x0_5", 37, ("eval",)),
        *(1024, 3),
    )
    assert len(trial.seconds_per_clip) == len(trial.core_seconds_per_clip) == 3
    assert min(trial.seconds_per_clip) > 0
    assert torch.get_num_threads() == threads


def test_a_mean_of_a_sample_comes_with_its_interval():
    assert Range.of_mean([4.0, 4.0, 4.0]) == Range(4, 4, 4)
    half_width = 4.3027 / math.sqrt(3)  # Student's t for 2 degrees of freedom; the standard deviation is 1
    assert Range.of_mean([9.0, 10.0, 11.0]) == Range(10, 9, pytest.approx(10 + half_width, abs=1e-3))
    assert Range.of_mean([5.0]) == Range(5, 2.5, 10)
    wide = Range.of_mean([1.0, 3.0] * 20)
    assert (wide.estimate, wide.high - 2, 2 - wide.low) == (
        2,
        pytest.approx(0.324, abs=1e-3),
        pytest.approx(0.324, abs=1e-3),
    )


def trials(decode_s: float, read_s: float | None = None, *, modes: tuple[str, ...] = ("train",)) -> list[DecodingTrial]:
    return [DecodingTrial(f"{number}", mode, decode_s, read_s) for mode in modes for number in range(3)]


def backbone(
    seconds: float, core_seconds: float = 0.0, width: int = 512, modes: tuple[str, ...] = ("train", "eval")
) -> BackboneTrial:
    return BackboneTrial("made up", 224, modes, width, 16, [seconds] * 3, [core_seconds] * 3)


GPU = Machine(cores=9, decoders=8, devices=2, device="cuda", threads=1)
CPU = Machine(cores=4, decoders=2, devices=2, device="cpu", threads=2)


@pytest.mark.parametrize(
    ("machine", "decoding", "encoder", "wall_s", "bottleneck"),
    [
        # 100 videos of 2 clips: 100 x 4 s / 8 decoders = 50 s; 200 x 0.1 s / 2 devices = 10 s.
        (GPU, trials(4.0), backbone(0.1, 9.9), 50, "decoding"),
        (GPU, trials(1.0, 7.0), backbone(0.1, 9.9), 100, "reading"),
        (GPU, trials(4.0), backbone(1.0, 9.9), 100, "backbone"),
        # Decoding bound 100 / 2, backbone bound 200 x 0.5 / 2, cores bound (100 + 200 x 1) / 4 core-seconds.
        (CPU, trials(1.0), backbone(0.5, 1.0), 75, "backbone"),
        (CPU, trials(1.0), backbone(0.25, 0.5), 50, "decoding"),
    ],
)
def test_the_slower_side_decides_and_cpus_are_shared(machine, decoding, encoder, wall_s, bottleneck):
    cost = estimate({"train": 100}, decoding, [encoder], machine, SAMPLING, 64)
    assert cost is not None
    assert cost.wall_s == Range(*[pytest.approx(wall_s)] * 3)
    assert cost.bottleneck == bottleneck
    assert cost.num_clips == 200


def test_modes_and_backbones_add_up():
    decoding = [*trials(1.0), *trials(2.0, modes=("eval",))]
    cost = estimate({"train": 10, "eval": 5}, decoding, [backbone(0.1), backbone(0.3, width=8)], GPU, SAMPLING, 64)
    assert cost is not None
    assert cost.num_clips == 10 * 2 + 5 * 3
    assert cost.decode_core_s.estimate == pytest.approx(10 * 1 + 5 * 2)
    assert cost.backbone_device_s.estimate == pytest.approx(35 * 0.4)
    assert cost.decoder_clips_per_s.estimate == pytest.approx(35 / 20)
    assert cost.device_clips_per_s.estimate == pytest.approx(1 / 0.4)
    # One device encodes 2.5 clips/s, one core decodes 1.75 clips/s.
    assert cost.decoders_per_device.estimate == pytest.approx(2.5 / 1.75)
    assert cost.store_bytes == sum(store_bytes(cost.num_videos, SAMPLING, width, 64) for width in (512, 8))
    assert cost.read_s is None


def test_clips_of_each_mode_cost_what_a_clip_of_its_input_size_takes():
    decoding = [*trials(1.0), *trials(2.0, modes=("eval",))]
    sizes = [backbone(0.1, modes=("train",)), backbone(0.3, modes=("eval",))]
    cost = estimate({"train": 10, "eval": 5}, decoding, sizes, GPU, SAMPLING, 64)
    assert cost is not None
    assert cost.backbone_device_s.estimate == pytest.approx(10 * 2 * 0.1 + 5 * 3 * 0.3)
    assert cost.store_bytes == store_bytes(cost.num_videos, SAMPLING, 512, 64)
    alone = estimate({"train": 10}, trials(1.0), sizes[:1], GPU, SAMPLING, 64)
    assert alone is not None
    assert alone.backbone_device_s.estimate == pytest.approx(10 * 2 * 0.1)


def test_a_range_of_the_sample_becomes_one_of_the_estimate():
    decoding = [DecodingTrial(str(n), "train", seconds, None) for n, seconds in enumerate((1.0, 2.0, 3.0))]
    cost = estimate({"train": 8}, decoding, [backbone(0.1)], GPU, SAMPLING, 64)
    assert cost is not None
    assert cost.wall_s == Range(*(pytest.approx(value) for value in vars(Range.of_mean([1.0, 2.0, 3.0])).values()))
    assert cost.decoders_per_device.low < cost.decoders_per_device.estimate < cost.decoders_per_device.high
    assert "(1 to 4.5)" in "\n".join(cost.lines())


def test_there_is_no_estimate_for_a_mode_that_nothing_was_measured_in():
    assert estimate({"train": 1, "eval": 1}, trials(1.0), [backbone(0.1)], GPU, SAMPLING, 64) is None
    assert estimate({}, [], [backbone(0.1)], GPU, SAMPLING, 64) is None


def test_videos_are_counted_in_the_modes_of_an_extraction():
    splits = [{"default": "train"}] * 3 + [{"default": "test"}]
    assert videos_by_mode(splits, "auto", has_several_splits=False, scale=10) == {"train": 30, "eval": 10}
    assert videos_by_mode(splits, "augmented", has_several_splits=False, scale=1) == {"augmented": 4}
    assert videos_by_mode(splits, "auto", has_several_splits=True, scale=1) == {"train": 4, "eval": 4}


def test_the_bytes_of_a_store_are_about_those_of_a_real_one(videos, tmp_path, rng):
    identity = {"backbone": "made up", "weights": "none", "input_px": 32}
    store = FeatureStore.create(str(tmp_path / "store"), fingerprint_of(identity, Sampling()))
    ids = [f"class/video_{number:05d}.mp4" for number in range(128)]
    for start in (0, 64):
        part = [
            VideoFeatures(
                video_id,
                rng.normal(size=(16, 96)).astype(np.float16),
                rng.random((16, 7), dtype=np.float32),
                VideoGeometry(120, 160, 8.0, 15.0),
            )
            for video_id in ids[start : start + 64]
        ]
        store.commit(store.part_name("train", ids[start : start + 64]), "train", part)
    store.replace_videos(read_corpus(str(videos)).videos)
    assert store_bytes({"train": 128}, Sampling(), 96, 64) == pytest.approx(store.size_bytes(), rel=0.15)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Child processes that crash or hang when they open a file named `crash` or `hang`."""
    code = tmp_path / "sitecustomize.py"
    code.write_text(
        """
import os, signal, sys, time
if "scale_ray.decoding.decoder_process" in " ".join(sys.orig_argv):
    import av
    real = av.open
    def opened(file, *rest, **keywords):
        if os.path.basename(file.name) == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if os.path.basename(file.name) == "hang": time.sleep(600)
        return real(file, *rest, **keywords)
    av.open = opened
"""
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_a_header_that_crashes_or_hangs_costs_one_video(broken, videos, tmp_path):
    for name in ("crash", "hang"):
        (tmp_path / name).write_text("opened by FFmpeg")
    paths = [str(tmp_path / "crash"), str(tmp_path / "hang"), *map(str, sorted((videos / "recede").glob("*.mp4")))]
    rows = [{"video_id": path, "path": path} for path in paths]
    readable, unreadable = read_headers(rows, Extraction(decode_timeout_s=3), Console(quiet=True))
    assert [header.video_id for header in readable] == sorted(paths[2:])
    assert [entry.video_id for entry in unreadable] == paths[:2]
    assert "signal SIGSEGV" in unreadable[0].reason
    assert "took longer than 3 s" in unreadable[1].reason


def test_a_segment_has_a_length_of_its_own_and_its_file_counts_once(videos, tmp_path):
    path = videos / "recede" / "recede_000.mp4"
    whole_s = header_of("whole", str(path)).duration_s
    text = f"path,start_s,end_s\n{path},1,3.5\n{path},2,\n{path},1,1000\n{path},2000,\n{path},,\n"
    (tmp_path / "m.csv").write_text(text)
    corpus = read_corpus(str(tmp_path / "m.csv"))
    headers, unreadable = read_headers(select_videos(corpus, 10, 0), Extraction(), Console(quiet=True))
    lengths = {header.video_id.partition("#")[2]: header.duration_s for header in headers}
    assert lengths == {"1-3.5": 2.5, "2-": whole_s - 2, "1-1000": whole_s - 1, "2000-": 0, "": whole_s}
    facts = facts_of_corpus(corpus, headers, unreadable)
    assert (facts.num_files, facts.size_bytes, facts.num_size_unknown) == (5, path.stat().st_size, 0)
