"""The commands of `docs/paper.md`, on stand-ins of the data sets and weights that they name; and its figures.

A shell expands the blocks as they are written, with a function in place of `scale-ray` that only records its arguments.
Every recorded command is then read by the real command line, up to the call of its stage.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import PROJECT, Command
from support.documents import blocks_of, commands_of
from support.stand_ins import CLIP_FRAMES, make_data_sets, make_weights
from torch.utils.flop_counter import FlopCounterMode

from scale_ray.backbones import load_backbone
from scale_ray.cli.main import cli
from scale_ray.config import SECTIONS, StageConfig, option_types, store_folder_name
from scale_ray.corpus import read_corpus
from scale_ray.store import FeatureStore

PAGE = PROJECT / "docs" / "paper.md"
RECORD = "scale-ray() { printf '%s\\x1f' \"$@\" >> calls; printf '\\x1e' >> calls; }\n"
PAPER_CLIPS = {"frames": 16, "stride": 4, "fps": 30.0, "clips": 16, "eval_times": 5, "eval_crops": 3}
TRANSDUCTIVE = ("ucf101", "hmdb51")


@dataclass(frozen=True)
class Call:
    """A command as it was typed, and what its stage was called with."""

    typed: list[str]
    positional: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def command(self) -> str:
        return self.typed[0]

    @property
    def config(self) -> StageConfig:
        return self.keywords["config"]


class _StageCalled(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: `data/` and `weights/` as the page says, and the environment that its first block sets."""
    pytest.importorskip("transformers")
    hub = importlib.import_module("huggingface_hub")
    folder = tmp_path_factory.mktemp("paper")
    make_data_sets(folder / "data")
    make_weights(folder / "weights", folder / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for line in subprocess.run(
            ["bash", "-euc", _script(1) + "env"], capture_output=True, text=True, check=True
        ).stdout.splitlines():
            name, _, value = line.partition("=")
            if name.startswith("SCALE_RAY_"):
                patch.setenv(name, value)
        for block in blocks_of(PAGE):
            if block.kind == "python":
                exec(compile(block.text, str(PAGE), "exec"), {})
        yield folder


@pytest.fixture(scope="module")
def calls(folder: Path) -> list[Call]:
    """Every command of the page, in order."""
    subprocess.run(["bash", "-euc", RECORD + _script()], cwd=folder, check=True)
    typed = [call.split("\x1f")[:-1] for call in (folder / "calls").read_text().split("\x1e")[:-1]]
    return [_read(words) for words in typed]


def _script(num_blocks: int | None = None) -> str:
    blocks = [block for block in blocks_of(PAGE) if block.kind == "console"]
    return "".join(f"{command}\n" for block in blocks[:num_blocks] for command in commands_of(block))


def _read(words: list[str]) -> Call:
    def stage(*positional: Any, **keywords: Any) -> None:
        raise _StageCalled(positional, keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module(f"scale_ray.stages.{words[0]}"), words[0], stage)
        with pytest.raises(_StageCalled) as called:
            cli.main(words, standalone_mode=False, obj={})
    return Call(words, *called.value.args)


def _table(heading: str) -> list[dict[str, str]]:
    """The rows of the table whose first line begins with `heading`, by column."""
    lines = iter(PAGE.read_text().splitlines())
    head = next(line for line in lines if line.startswith(f"| {heading}"))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(_cells(head), _cells(line), strict=True)))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_data_set_is_read_by_its_official_lists(calls: list[Call]):
    found = {}
    for call in calls:
        if call.command == "extract":
            corpus = read_corpus(call.positional[0], call.config.corpus)
            subsets = [subset for row in corpus.videos.to_pylist() for _, subset in row["splits"]]
            labels = {row["label"] for row in corpus.videos.to_pylist()} - {None}
            found[call.positional[1]] = (len(corpus.videos), len(labels), corpus.split_names, Counter(subsets))
    three = ("1", "2", "3")
    assert found == {
        "features/ucf101": (12, 2, three, {"train": 24, "test": 12}),
        "features/hmdb51": (8, 2, three, {"train": 16, "test": 6}),
        "features/k400": (4, 2, ("default",), {"train": 2, "test": 2}),
        "features/ssv2": (3, 2, ("default",), {"train": 1, "test": 2}),
        "features/lvu": (2, 2, ("default",), {"train": 1, "test": 1}),
    }


def test_the_files_of_weights_fit_the_backbones_of_the_commands(calls: list[Call]):
    [options] = {call.config.backbone for call in calls if call.command == "extract"}
    rows = _table("the paper's backbone")
    slow, svt, *others = backbones = [load_backbone(each, CLIP_FRAMES) for each in options.each()]
    assert (slow.identity()["weights_copy"], slow.input_px) == ("momentum", 224)
    assert (svt.identity()["time_embeddings"], svt.input_px) == ("8, interpolated to 16", 224)
    for backbone in backbones:
        assert (backbone.identity()["pixel_mean"], backbone.identity()["pixel_std"]) == ([0.45] * 3, [0.225] * 3)
    assert len(rows) == 2 + len(others)
    for backbone, row in ((slow, rows[0]), (svt, rows[1])):
        clip = backbone.black_clips(1, CLIP_FRAMES).to("meta")
        assert _width_and_cost(backbone.to("meta"), clip) == (row["width"], row["GFLOP/clip"])


def test_width_and_cost_of_videomae_are_those_of_its_configurations():
    hf = pytest.importorskip("transformers")
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    for size, names in (({}, ("base`", "base-finetuned-kinetics`")), (large, ("large`",))):
        with torch.device("meta"):
            model, clip = hf.VideoMAEModel(hf.VideoMAEConfig(**size)), torch.zeros(1, CLIP_FRAMES, 3, 224, 224)
        figures = _width_and_cost(lambda clip, model=model: model(clip).last_hidden_state.mean(1), clip)
        rows = [row for row in _table("the paper's backbone") for name in names if name in row["file, and where it is"]]
        assert [(row["width"], row["GFLOP/clip"]) for row in rows] == [figures] * len(names)


def _width_and_cost(encode: Callable[[torch.Tensor], torch.Tensor], clip: torch.Tensor) -> tuple[str, str]:
    """Feature width, and multiply-adds of a clip in units of 10^9, as they are written on the page."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        features = encode(clip)
    return str(features.shape[1]), f"{counter.get_total_flops() / 2e9:.1f}"


def test_every_command_uses_what_earlier_ones_left(calls: list[Call]):
    modes: dict[str, set[str]] = {}
    stores_of_runs: dict[str, str] = {}
    for call in calls:
        if call.command == "extract":
            for name in call.config.backbone.backbone.split(","):
                modes.setdefault(f"{call.positional[1]}/{store_folder_name(name)}", set()).add(
                    call.config.extraction.mode.replace("auto", "train")
                )
        elif call.command == "pretrain":
            store, run = call.positional[:2]
            assert call.config.training.pretrain_mode in modes[store]
            assert run not in stores_of_runs, "a run of another command"
            stores_of_runs[run] = store
        elif call.command == "probe":
            store, run = call.positional[:2]
            assert stores_of_runs[run] == store
            assert call.config.probing.probe_mode in modes[store]
        elif call.command == "sweep":
            assert call.positional[0] in modes
        else:
            assert (call.command, Path(call.positional[0]).is_dir()) == ("inspect", True)
    tables = [call.keywords["out"] or call.positional[1] for call in calls if call.command == "probe"]
    assert len(set(tables)) == len(tables), "a table would be overwritten"
    main = {(data, name) for data in ("ucf101", "hmdb51", "k400", "ssv2", "lvu") for name in _backbone_folders(calls)}
    assert {tuple(run.split("-", 1)) for run in stores_of_runs} >= main


def _backbone_folders(calls: list[Call]) -> list[str]:
    return [store_folder_name(each.backbone) for each in calls[1].config.backbone.each()]


def test_the_main_commands_have_the_settings_of_the_paper(calls: list[Call]):
    for call in calls:
        if call.command == "extract":
            clips = PAPER_CLIPS | {"flip_probability": 0.5}
            if "ssv2" in call.positional[1]:
                clips |= {"stride": 2, "flip_probability": 0.0, "eval_times": 2}
            assert {name: getattr(call.config.sampling, name) for name in clips} == clips
        elif call.command == "pretrain" and not call.positional[1].startswith("ablation"):
            config, data = call.config, call.positional[0].split("/")[1]
            assert (config.sets, config.aggregator, config.objective) == (type(config)().sets, *_defaults(config))
            assert config.training.epochs == (1000 if data in TRANSDUCTIVE else 200)
            assert config.training.pretrain_on == ("all" if data in TRANSDUCTIVE else "train")
            assert config.training.train_precision == "float32"
        elif call.command == "probe":
            probing, data = call.config.probing, call.positional[0].split("/")[1]
            assert (probing.learning_rates, probing.weight_decays) == ((3e-4,), (1e-4,))
            assert (probing.probe_epochs, probing.probe_min_steps) == (60, 1)
            assert call.config.splits.split == "all" or data not in TRANSDUCTIVE


def _defaults(config: StageConfig) -> tuple[Any, Any]:
    return type(config)().aggregator, type(config)().objective


def test_the_settings_that_are_called_defaults_are_defaults():
    defaults = {
        field.name: field.default for section in SECTIONS.values() for field in section.__dataclass_fields__.values()
    }
    types = {name: type_ for section in SECTIONS.values() for name, (type_, *_) in option_types(section).items()}
    checked = 0
    for row in _table("setting of the paper"):
        words = row["option"].strip("`").split()
        for flag, value in zip(words[::2], words[1::2], strict=True):
            name = flag.removeprefix("--").replace("-", "_")
            read = tuple(map(float, value.split(","))) if types[name] is tuple else types[name](value)
            assert defaults[name] == read, flag
            checked += 1
    assert checked > 25


def test_the_hours_follow_from_the_figures_beside_them():
    cost = [float(row["GFLOP/clip"]) for row in _table("the paper's backbone")]
    measured = json.loads((PROJECT / "benchmarks/results/decoding_modes.json").read_text())["figures"]
    files = {"Kinetics-400": "h264-320.mp4", "SSv2": "vp9-240.webm"}
    steps = {"UCF-101": 26_000, "HMDB-51": 13_000, "Kinetics-400": 93_600, "SSv2": 65_800}
    videos = {"UCF-101": 13_320, "HMDB-51": 6_766, "Kinetics-400": 240_000, "SSv2": 168_913}
    for row in _table("data | clips to train on"):
        data = row["data"]
        train, test = (1000 * float(row[name]) for name in ("clips to train on, thousands", "to test, thousands"))
        assert train == pytest.approx(16 * videos[data], rel=0.005)
        assert steps[data] == videos[data] // 512 * (1000 if data in ("UCF-101", "HMDB-51") else 200)
        rates = [
            measured[f"{files.get(data, 'mpeg4-240.avi')}, {mode}"]["clips per core second"]
            for mode in ("train", "eval")
        ]
        slow = cost[0] * (train + test * (256 / 224) ** 2)
        others = sum(cost[1:]) * (train + test)
        expected = {
            "decoding, core hours": (train / rates[0] + test / rates[1]) / 3600,
            "all five backbones, GPU hours": 2 * (slow + others) / (0.35 * 989_000) / 3600,
            "Slow R50 alone, GPU hours": 2 * slow / (0.35 * 989_000) / 3600,
            "pretraining, GPU hours per backbone": steps[data] * 558 / (0.35 * 67_000) / 3600,
        }
        for name, hours in expected.items():
            assert float(row[name]) == pytest.approx(hours, rel=0.03, abs=0.005), (data, name)


def test_the_page_is_linked_and_links_to_what_exists():
    links = re.findall(r"\]\(([^)]*)\)", PAGE.read_text())
    for link in links:
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            text = (PAGE.parent / path).read_text() if path else PAGE.read_text()
            titles = re.findall(r"^#+ (.+)$", text, re.M)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in anchors, link
    assert "docs/paper.md" in (PROJECT / "README.md").read_text()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_commands_of_ucf101_give_its_tables(
    folder: Path, calls: list[Call], scale_ray: Command, shared_ray: str, monkeypatch: pytest.MonkeyPatch
):
    """For real, but with two of the five backbones, which are tiny, narrow heads and few epochs."""
    small = "hf:MCG-NJU/videomae-base,hf:MCG-NJU/videomae-large"
    ucf101 = [call.typed for call in calls if any("ucf101" in word for word in call.typed)]
    run = "ucf101-hf-MCG-NJU-videomae-large"
    extract = next(words for words in ucf101 if words[0] == "extract")
    pretrain = next(words for words in ucf101 if words[0] == "pretrain" and run in words)
    probe = next(words for words in ucf101 if words[0] == "probe" and f"tables/{run}-main" in words)
    ended = scale_ray(*extract, "--backbone", small, "--weights", "default", "--precision", "float32", cwd=folder)
    assert ended.code == 0, ended.err
    store = FeatureStore(str(folder / pretrain[pretrain.index("--store") + 1]))
    assert {mode: len(store.stored_ids(mode)) for mode in ("train", "eval")} == {"train": 12, "eval": 12}
    ended = scale_ray(
        *pretrain, "--epochs", 2, "--prediction-hidden", 32, "--target-hidden", 32, "--workers", 1, cwd=folder
    )
    assert ended.code == 0, ended.err
    assert "training on 12 videos" in ended.err
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # t-SNE's threads wait long for each other if the cores are busy
    ended = scale_ray(*probe, "--probe-epochs", 2, "--resamples", 50, "--json", cwd=folder)
    assert ended.code == 0, ended.err
    tables = {table["split"]: table for table in json.loads(ended.out)["splits"]}
    assert len(tables) == 4  # the last is the mean
    for split in ("1", "2", "3"):
        table = tables[split]
        assert (table["num_train_videos"], table["num_test_videos"], table["num_classes"]) == (8, 4, 2)
        assert "transductive: the aggregator also saw 4 test videos, without labels" in table["notes"]
        metrics = {row["representation"]: set(row["metrics"]) for row in table["rows"]}
        assert {"knn_top1", "linear_top1", "mlp_top1"} <= metrics["backbone feature alone"]
        assert {"knn_top1", "linear_top1"} <= metrics["with trained aggregator"]
    assert (folder / "tables" / f"{run}-main" / "table.md").is_file()
