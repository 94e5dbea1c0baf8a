import dataclasses

import click
import pytest

from scale_ray.cli.main import cli
from scale_ray.config import SECTIONS, BackboneOptions, PretrainConfig, Sampling, SweepConfig
from scale_ray.config.option import flag_of
from scale_ray.errors import UserError


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("sets", "mask_ratio", 1.5, r"mask_ratio: expected a value in \[0, 1\), found 1.5"),
        ("training", "learning_rate", 10**400, "learning_rate: expected a value of type float, found 1000"),
        ("sets", "mask_ratio", 1.0, r"in \[0, 1\), found 1.0"),
        ("sets", "set_size", "8", "set_size: expected a value of type int, found '8'"),
        ("sets", "set_size", True, "expected a value of type int, found True"),
        ("aggregator", "width", 100, "expected a value a multiple of 32, found 100"),
        ("extraction", "mode", "evaluate", "one of auto, train, augmented, eval, found 'evaluate'"),
        ("backbone", "pixel_std", [0.0], "pixel_std: expected values above 0"),
        (
            "training",
            "arithmetic",
            "float32",
            "arithmetic: unknown option, expected its new name train_precision",
        ),
        ("sets", "maskratio", 0.2, "sets.maskratio: unknown option, expected one of mask_ratio"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected_and_found(section, name, value, message):
    with pytest.raises(UserError, match=message):
        SECTIONS[section].from_dict({name: value})


def test_options_survive_a_dictionary():
    config = PretrainConfig().with_values({"sets.mask_ratio": 0.5, "training.epochs": 3})
    assert PretrainConfig.from_dict(config.to_dict()) == config
    assert (config.sets.mask_ratio, config.training.epochs) == (0.5, 3)
    assert BackboneOptions.from_dict(BackboneOptions(pixel_mean=(0.5,)).to_dict()).pixel_mean == (0.5,)


def test_the_papers_numbers_are_the_defaults():
    config, sampling = PretrainConfig(), Sampling()
    assert (config.sets.set_size, config.sets.mask_ratio) == (8, 0.25)
    assert (config.aggregator.width, config.aggregator.layers, config.aggregator.mlp_ratio) == (256, 2, 2.0)
    assert (config.training.learning_rate, config.training.weight_decay, config.training.batch) == (3e-4, 1e-4, 512)
    assert (config.objective.set_temperature, config.objective.clip_temperature) == (0.2, 0.2)
    assert sampling.span_s == pytest.approx(2.1333, abs=1e-3)


def test_every_flag_of_every_command_is_an_option_of_the_configuration():
    """No default is typed twice: a command's section flags are the fields, with the fields' defaults.

    Those of a sweep have the values that it tries by default.
    """
    checked = 0
    for command in cli.commands.values():
        tried = SweepConfig.searchable() if command.name == "sweep" else {}
        for parameter in command.params:
            section, separator, name = parameter.name.partition("__")
            if not separator:
                continue
            field = SECTIONS[section].__dataclass_fields__[name]
            assert isinstance(parameter, click.Option)
            assert parameter.opts == [flag_of(name)]
            assert parameter.default == (tried.get(f"{section}.{name}") or field.default)
            checked += 1
    assert checked > 100


def test_option_names_are_unique_so_that_one_command_can_take_every_section():
    names = [field.name for section in SECTIONS.values() for field in dataclasses.fields(section)]
    assert len(names) == len(set(names))


def test_every_option_has_help_that_ends_in_a_full_stop():
    for section in SECTIONS.values():
        for field in dataclasses.fields(section):
            assert field.metadata["help"].endswith("."), field.name


def test_only_a_part_of_the_options_of_a_pretraining_is_searched_and_the_values_tried_are_valid():
    pretraining = {f"{section}.{name}" for name, section in PretrainConfig.option_sections().items()}
    assert set(SweepConfig.searchable()) < pretraining
    for dotted, tried in SweepConfig.searchable().items():
        for value in tried:
            PretrainConfig().with_values({dotted: value})
