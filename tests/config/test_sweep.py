"""The options of a sweep: what is searched, what is fixed, and the ways to say it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import scale_ray as sr
from scale_ray.cli.main import cli
from scale_ray.config import Range, Sets, SweepConfig
from scale_ray.errors import UserError
from scale_ray.stages import api

DEFAULT = {"sets.set_size": (4, 8), "sets.mask_ratio": (0.15, 0.25, 0.5)}
RICH = {
    "mask_ratio": (0.15, 0.5),
    "set_size": "4..8",
    "learning_rate": sr.log_uniform(1e-4, 1e-2),
    "candidates": ["all", "masked"],
    "epochs": 3,
}
RICH_SPACE = {
    "sets.set_size": Range(4, 8),
    "sets.mask_ratio": (0.15, 0.5),
    "objective.candidates": ("all", "masked"),
    "training.learning_rate": Range(1e-4, 1e-2, log=True),
}


def test_by_default_set_size_and_mask_ratio_are_searched():
    config = SweepConfig()
    assert config.space == DEFAULT
    assert list(config.space) == list(DEFAULT), "in the order of the options: it is that of the grid"
    assert SweepConfig.from_dict({}) == config
    assert set(DEFAULT) < set(config.searchable())
    assert {name for name, tried in config.searchable().items() if tried} == set(DEFAULT)


@pytest.mark.parametrize("value", [0.5, (0.5,), [0.5], "0.5"])
def test_one_value_is_fixed_and_not_searched(value):
    config = SweepConfig().replaced(mask_ratio=value)
    assert config.space == {"sets.set_size": (4, 8)}
    assert config.sets.mask_ratio == 0.5


def test_round_trips_keep_the_space():
    config = SweepConfig().replaced(**RICH)
    assert (config.space, config.training.epochs) == (RICH_SPACE, 3)
    assert list(config.space) == list(RICH_SPACE)
    assert SweepConfig.from_dict(config.nested()) == config
    assert config.with_values({}) == config
    changed = config.replaced(epochs=5, trials=7).with_values({"sets.set_size": 8})
    assert changed.space == {name: domain for name, domain in RICH_SPACE.items() if name != "sets.set_size"}
    assert (changed.training.epochs, changed.searching.trials, changed.sets.set_size) == (5, 7, 8)
    assert changed.replaced(set_size="4..8", epochs=3, trials=20) == config


def test_an_option_that_was_set_directly_is_not_searched():
    assert SweepConfig(sets=Sets(mask_ratio=0.6)).space == {"sets.set_size": (4, 8)}
    given = {"training.epochs": [1, 2], "sets.mask_ratio": "0.1..0.5"}
    space = {"sets.mask_ratio": Range(0.1, 0.5), "training.epochs": (1, 2)}
    assert list(SweepConfig(space=given).space.items()) == list(space.items()), "in the order of the options"
    with pytest.raises(UserError, match=r"training.lr: expected an option that can be searched, one of training"):
        SweepConfig(space={"training.lr": (1e-3, 1e-2)})


def test_masked_clips_take_the_place_of_mask_ratio():
    fixed = SweepConfig().replaced(masked_clips=2)
    assert (fixed.space, fixed.sets.masked_clips) == ({"sets.set_size": (4, 8)}, 2)
    searched = SweepConfig().replaced(masked_clips=(1, 2))
    assert searched.space == {"sets.set_size": (4, 8), "sets.masked_clips": (1, 2)}
    assert searched.replaced(epochs=3).space == searched.space
    for ratios in ((0.1, 0.2), "0.1..0.2"):
        with pytest.raises(UserError, match="mask_ratio: expected a single value beside masked_clips"):
            SweepConfig().replaced(masked_clips=2, mask_ratio=ratios)
    assert SweepConfig().replaced(masked_clips=2, mask_ratio=0.5).sets.mask_ratio == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out_share": 0.1}, "held_out_share: expected 0.0 in a sweep, whose trials hold out folds, found 0.1"),
        ({"held_out_share": 0.1, "patience": 3}, "expected 0.0 in a sweep"),
        ({"pretrain_on": "all"}, "pretrain_on: expected 'train' in a sweep, .* found 'all'"),
        ({"seed": (1, 2)}, r"seed: expected a value of type int, found \(1, 2\)"),
        ({"mask_ratio": None}, "mask_ratio: expected a value of type float, found None"),
        ({"search": "grid", "epochs": "1..5"}, r"epochs: expected listed values for a grid, found the range 1\.\.5"),
        ({"trial_gpus": 1.5}, "trial_gpus: expected a value above 0, and whole above 1, found 1.5"),
        # Each is valid by itself, but one of the settings is not.
        ({"masked_clips": 5}, "fewer than the 4 clips of a set, found 5, in one of the settings to try"),
        ({"masked_clips": "1..6", "set_size": (16, 4)}, "fewer than the 4 clips of a set, found 6, in one of the"),
        ({"set_weight": (1, 0), "clip_weight": "0..1"}, "found both 0, in one of the settings to try"),
    ],
)
def test_what_a_sweep_cannot_follow_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        SweepConfig().replaced(**options)


def test_a_fixed_option_may_need_another_one_to_be_off_its_default():
    config = SweepConfig().replaced(set_size=(16, 32), masked_clips=10)
    assert config.space == {"sets.set_size": (16, 32)}
    assert SweepConfig().replaced(set_size="16..32", masked_clips=10).space == {"sets.set_size": Range(16, 32)}
    assert SweepConfig.from_dict(config.nested()) == config


def test_other_stages_search_nothing():
    from scale_ray.config import PretrainConfig

    assert not PretrainConfig.searchable()
    with pytest.raises(UserError, match=r"mask_ratio: expected a value of type float, found \(0.1, 0.2\)"):
        PretrainConfig().replaced(mask_ratio=(0.1, 0.2))


@pytest.fixture
def given(monkeypatch):
    """The configuration that the stage `sweep` gets from a command line."""

    def run(*arguments: object, **environment: str) -> SweepConfig:
        seen = []
        monkeypatch.setattr("scale_ray.stages.sweep.sweep", lambda *_, config, **__: seen.append(config) or 1 / 0)
        result = CliRunner().invoke(cli, ["sweep", "--store", "s", *map(str, arguments)], env=environment)
        if not isinstance(result.exception, ZeroDivisionError):
            raise result.exception
        return seen[0]

    return run


def write(folder: Path, values: object) -> Path:
    path = folder / "c.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_flags_files_and_keywords_give_the_same_configuration(given, tmp_path):
    flags = "--mask-ratio 0.15,0.5 --set-size 4..8 --learning-rate log:1e-4..1e-2 --candidates all,masked --epochs 3"
    text = """
        sets: {mask_ratio: [0.15, 0.5], set_size: 4..8}
        training: {learning_rate: "log:1e-4..1e-2", epochs: 3}
        objective: {candidates: "all, masked"}
    """
    by_keyword = SweepConfig().replaced(**RICH)
    assert given(*flags.split()) == given("--config", write(tmp_path, text)) == by_keyword
    assert given() == SweepConfig()


def test_flags_go_on_top_of_a_file_and_the_environment_between_them(given, tmp_path):
    path = write(tmp_path, "sets: {mask_ratio: [0.1, 0.2], set_size: [2, 4]}\ntraining: {learning_rate: 1e-4}")
    config = given("--config", path, "--mask-ratio", "0.3", SCALE_RAY_SET_SIZE="4..6", SCALE_RAY_LAYERS="1,2")
    assert config.space == {"sets.set_size": Range(4, 6), "aggregator.layers": (1, 2)}
    assert (config.sets.mask_ratio, config.training.learning_rate) == (0.3, 1e-4)
    assert given("--config", path).space == {"sets.set_size": (2, 4), "sets.mask_ratio": (0.1, 0.2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: {mask_ratio: [0.1, 2]}", r"mask_ratio: expected a value in \[0, 1\), found 2.0"),
        ("sets: {mask_ratio: {low: 0.1}}", "mask_ratio: expected a value of type float, found {'low': 0.1}"),
        ("sets: {mask_ratio: []}", "mask_ratio: expected different values to try, found none"),
        ("sets: {mask_ratio: }", "mask_ratio: expected a value of type float, found None"),
        ("sets: {maskratio: [0.1, 0.2]}", "sets.maskratio: unknown option, expected one of mask_ratio"),
        ("training: {seed: [0, 1]}", r"seed: expected a value of type int, found \[0, 1\]"),
        ("space: {sets.mask_ratio: [0.1, 0.2]}", "--config: expected sections named .*, found 'space'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(given, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        given("--config", write(tmp_path, text))


def test_a_file_may_say_that_an_option_has_no_value(given, tmp_path):
    assert given("--config", write(tmp_path, "sets: {masked_clips: null}")) == SweepConfig()


def test_python_takes_lists_and_ranges_and_shows_what_is_tried(monkeypatch):
    seen = []

    def stage(store: str, *, config: SweepConfig, console) -> None:
        """Note the configuration."""
        seen.append(config)

    stage.__annotations__ |= {"config": SweepConfig, "return": type(None)}
    monkeypatch.setattr("scale_ray.stages.sweep.sweep", stage)
    api.stage_function("sweep")("s", **RICH)
    assert seen == [SweepConfig().replaced(**RICH)]
    parameters = inspect.signature(api.stage_function("sweep")).parameters
    assert parameters["mask_ratio"].default == (0.15, 0.25, 0.5)
    assert parameters["masked_clips"].default is None
    assert "set_size = (4, 8)\n" in api.stage_function("sweep").__doc__


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("sweep", "mask_ratio: float | Sequence[float] | Range = (0.15, 0.25, 0.5)"),
        ("sweep", "masked_clips: int | None | Sequence[int] | Range = None"),
        ("sweep", "candidates: str | Sequence[str] = 'all'"),
        ("sweep", "seed: int = 0"),
        ("pretrain", "mask_ratio: float = 0.25"),
    ],
)
def test_the_stub_has_the_types_of_what_is_searched(function, line):
    assert line in list(api._stub_parameters(api._stage(function)))
    assert "from scale_ray.config import Range as Range\n" in api.stub()


def test_ranges_are_made_from_the_package_itself():
    assert sr.uniform(0.1, 0.9) == sr.Range(0.1, 0.9)
    assert sr.log_uniform(1e-4, 1e-2) == sr.Range(1e-4, 1e-2, log=True)


def test_an_option_is_also_tried_by_its_dotted_name(monkeypatch, tmp_path):
    import scale_ray.stages.sweep

    seen: list[SweepConfig] = []

    def stage(*_, config: SweepConfig, **__):
        seen.append(config)
        raise UserError("seen")

    monkeypatch.setattr(scale_ray.stages.sweep, "sweep", stage)
    words = [
        "sweep",
        "--store",
        "s",
        "--try",
        "aggregator.layers=1,2",
        "--try",
        "training.learning_rate=log:1e-4..1e-2",
    ]
    with pytest.raises(UserError, match="seen"):
        cli.main(words, standalone_mode=False, obj={})
    assert seen[0].space["aggregator.layers"] == (1, 2)
    assert seen[0].space["training.learning_rate"] == Range(1e-4, 1e-2, log=True)
    for wrong in ("layers=1,2", "aggregator.layers", "aggregator.layer=1"):
        with pytest.raises(UserError, match=r"--try: expected NAME=VALUES with NAME one of .*aggregator.layers"):
            cli.main(["sweep", "--store", "s", "--try", wrong], standalone_mode=False, obj={})
