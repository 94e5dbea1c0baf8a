"""Which settings a search tries, and the names of its trials."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from scale_ray.config import Range, SweepConfig, log_uniform, uniform
from scale_ray.errors import UserError
from scale_ray.search import grid_settings, key_of, random_settings

SPACE = {"sets.mask_ratio": (0.15, 0.25, 0.5), "training.learning_rate": log_uniform(1e-4, 1e-2)}


def test_a_grid_has_all_combinations_and_the_last_option_changes_fastest():
    settings = list(grid_settings({"a": (1, 2), "b": ("x", "y", "z")}))
    assert [tuple(setting.values()) for setting in settings] == [(a, b) for a in (1, 2) for b in "xyz"]
    assert all(list(setting) == ["a", "b"] for setting in settings)
    assert list(grid_settings({})) == [{}], "nothing is searched: the options are the only setting"


def test_random_settings_depend_on_their_number_and_the_seed_alone():
    first = list(islice(random_settings(SPACE, 0), 50))
    assert list(islice(random_settings(SPACE, 0), 20)) == first[:20], "more trials continue a smaller search"
    assert len({json.dumps(setting) for setting in first}) == 50
    assert not any(setting in first for setting in islice(random_settings(SPACE, 1), 50))
    grown = islice(random_settings({**SPACE, "aggregator.layers": uniform(1, 4)}, 0), 50)
    assert [{name: setting[name] for name in SPACE} for setting in grown] == first


@pytest.mark.parametrize(
    ("space", "num_settings"),
    [
        ({"a": (1, 2, 3), "b": uniform(4, 5)}, 6),
        ({"a": log_uniform(1, 2000)}, 2000),  # the last ones would be drawn once in 15,000 draws
        ({"a": uniform(1.0, np.nextafter(1.0, 2))}, 2),
        ({}, 1),
    ],
)
def test_random_settings_end_when_all_have_been_drawn_once(space, num_settings):
    settings = list(random_settings(space, 0))
    assert len({json.dumps(setting) for setting in settings}) == len(settings) == num_settings


def test_random_settings_are_as_likely_as_their_domains_say():
    space = {**SPACE, "training.epochs": uniform(1, 5), "training.dropout": uniform(0.1, 0.5)}
    drawn = list(islice(random_settings(space, 0), 3000))
    values = {name: [setting[name] for setting in drawn] for name in space}
    for name, num_values in (("sets.mask_ratio", 3), ("training.epochs", 5)):
        counts = Counter(values[name]).values()
        assert len(counts) == num_values
        assert max(abs(count - 3000 / num_values) for count in counts) < 5 * np.sqrt(3000 / num_values)
    for shares in (
        (np.log10(values["training.learning_rate"]) + 4) / 2,
        (np.array(values["training.dropout"]) - 0.1) / 0.4,
    ):
        largest_gap = np.abs(np.sort(shares) - (np.arange(3000) + 0.5) / 3000).max()  # Kolmogorov and Smirnov's
        assert largest_gap < 1.95 / np.sqrt(3000)
    correlations = np.corrcoef([values[name] for name in space]) - np.eye(4)
    assert np.abs(correlations).max() < 0.1


SETTING = {"sets.set_size": 4, "sets.mask_ratio": 0.15}
KEY = key_of(SweepConfig(), SETTING, 0)


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"mask_ratio": (0.15, 0.3)}, {}),
        ({"mask_ratio": 0.15}, {}),
        ({"mask_ratio": "0.1..0.5", "set_size": "4..8"}, {}),
        ({"layers": (2, 3)}, {"aggregator.layers": 2}),
        ({"mlp_ratio": (2, 3)}, {"aggregator.mlp_ratio": 2}),
        ({"candidates": ("masked", "all")}, {"objective.candidates": "all"}),
        ({"trials": 7, "seeds": 9, "experiment": "other", "trials_at_once": 2}, {}),
    ],
)
def test_a_trial_has_the_same_key_whatever_else_is_searched(options, more):
    config = SweepConfig().replaced(**options)
    setting = {**SETTING, **more}
    assert key_of(config, setting, 0) == KEY
    assert key_of(config, dict(reversed(setting.items())), 0) == KEY
    assert key_of(config, json.loads(json.dumps(setting)), 0) == KEY
    assert key_of(config, {**setting, "sets.mask_ratio": np.float64(0.15)}, 0) == KEY


@pytest.mark.parametrize(
    ("options", "setting", "seed"),
    [
        ({}, {}, 1),
        ({}, {"sets.mask_ratio": 0.25}, 0),
        ({"mask_ratio": "0.1..0.5"}, {"sets.mask_ratio": np.nextafter(0.15, 1)}, 0),
        ({"layers": 3}, {}, 0),
        ({"layers": (2, 3)}, {"aggregator.layers": 3}, 0),
        ({"epochs": 199}, {}, 0),
        ({"masked_clips": (1, 2)}, {"sets.masked_clips": 1}, 0),
    ],
)
def test_another_value_seed_or_fixed_option_gives_another_key(options, setting, seed):
    assert key_of(SweepConfig().replaced(**options), {**SETTING, **setting}, seed) != KEY


def test_a_key_is_the_name_of_a_file_and_needs_a_value_of_every_searched_option():
    assert len(KEY) == 20
    assert set(KEY) <= set("0123456789abcdef")
    for missing in (SweepConfig(), SweepConfig().replaced(mask_ratio=Range(0.1, 0.5))):
        with pytest.raises(UserError, match="mask_ratio: expected a value of type float"):
            key_of(missing, {"sets.set_size": 4}, 0)
