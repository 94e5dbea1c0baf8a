"""The stages as functions: keywords are the options, checked in one place with the command line and YAML files."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import scale_ray as sr
from scale_ray.cli.main import cli
from scale_ray.config import PretrainConfig
from scale_ray.console import Result
from scale_ray.errors import UserError
from scale_ray.stages import api, pretrain

PACKAGE = Path(sr.__file__).parent


@pytest.fixture
def seen(monkeypatch):
    """What the stage `pretrain` is called with, instead of a training."""
    calls = []

    def stage(store: str, run: str, *, runs: str = "runs", config: PretrainConfig, console) -> None:
        """Note the call."""
        calls.append((store, run, runs, config, console))

    stage.__annotations__ |= {"config": PretrainConfig}
    monkeypatch.setattr(pretrain, "pretrain", stage)
    return calls


def test_keywords_flags_and_files_give_the_same_configuration(seen, tmp_path):
    api.stage_function("pretrain")(tmp_path / "s", "r", mask_ratio=0.5, epochs=3)
    CliRunner().invoke(cli, ["pretrain", "--store", "s", "--run", "r", "--mask-ratio", "0.5", "--epochs", "3"])
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"sets": {"mask_ratio": 0.5}, "training": {"epochs": 3}}))
    CliRunner().invoke(cli, ["pretrain", "--store", "s", "--run", "r", "--config", str(path)])
    by_keyword, by_flag, by_file = (call[3] for call in seen)
    assert by_keyword == by_flag == by_file == PretrainConfig().replaced(mask_ratio=0.5, epochs=3)
    assert seen[0][0] == str(tmp_path / "s"), "a path may be given as an object"


def test_an_unknown_keyword_is_refused_with_the_nearest_known_ones(seen):
    function = api.stage_function("pretrain")
    with pytest.raises(UserError, match="pretrain: unknown keyword 'maskratio', expected one of mask_ratio, mlp_ratio"):
        function("s", "r", maskratio=0.5)
    with pytest.raises(UserError, match="unknown keyword 'arithmetic', expected its new name train_precision"):
        function("s", "r", arithmetic="float32")
    with pytest.raises(UserError, match=r"mask_ratio: expected a value in \[0, 1\), found 2"):
        function("s", "r", mask_ratio=2)
    assert not seen


def test_a_whole_configuration_may_be_given_and_keywords_override_it(seen):
    api.stage_function("pretrain")("s", "r", config=PretrainConfig().replaced(epochs=7, seed=1), epochs=9, quiet=True)
    [(*_, config, console)] = seen
    assert (config.training.epochs, config.training.seed, console.quiet) == (9, 1, True)


def test_results_stand_for_their_paths():
    class Run:
        def __fspath__(self) -> str:
            return "/runs/first"

    assert api._text(Path("/a")) == "/a"
    assert api._text(["first", Path("/b"), Run()]) == "first,/b,/runs/first"
    assert api._text(["s0", "s1"]) == "s0,s1"
    assert api._path_text(Run()) == "/runs/first"
    assert api._path_text((0.15, 0.25)) == (0.15, 0.25)


@pytest.mark.parametrize("name", sorted(sr.STAGES))
def test_every_function_has_its_options_as_keywords_and_in_its_help(name):
    function = getattr(sr, name)
    parameters = inspect.signature(function).parameters
    config_type = api._config_of(api._stage(name))
    for option in config_type.option_sections():
        assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"{option} = " in function.__doc__
    own = [p for p in parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(own) <= 6


def test_the_stub_for_editors_is_current():
    stub = (PACKAGE / "__init__.pyi").read_text()
    assert stub == api.stub(), "print it anew: python -m scale_ray.stages.api > scale_ray/__init__.pyi"


def test_every_name_is_there_and_no_other():
    assert {"extract", "pretrain", "probe", "FeatureStore", "Aggregator", "VideoModel"} <= set(dir(sr))
    assert sr.FeatureStore.__name__ == "FeatureStore"
    with pytest.raises(AttributeError, match="no attribute 'extrakt'"):
        sr.extrakt  # noqa: B018


@dataclasses.dataclass(frozen=True)
class Shown(Result):
    def lines(self) -> list[str]:
        return ["a <b>", "c"]

    def pictures(self) -> list[bytes]:
        return [b"png"]


def test_a_result_prints_as_text_and_shows_itself_in_a_notebook():
    assert str(Shown()) == "a <b>\nc"
    html = Shown()._repr_html_()
    assert html.startswith("<pre>a &lt;b&gt;\nc</pre><img ")
    assert "base64,cG5n" in html
