"""What a search may try for one option: lists, ranges, and their texts."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest

from scale_ray.config import (
    AggregatorOptions,
    Range,
    domain_text,
    log_uniform,
    lowest_and_highest,
    setting_name,
    uniform,
)
from scale_ray.config.domain import as_domain
from scale_ray.config.option import read_value
from scale_ray.config.sweep import SweepConfig
from scale_ray.errors import UserError

SECTION_OF = SweepConfig.option_sections()


def domain_of(name: str, value: object) -> tuple | Range:
    return as_domain(name, value, partial(read_value, SweepConfig.sections()[SECTION_OF[name]], name))


@pytest.mark.parametrize(
    ("name", "value", "domain"),
    [
        ("mask_ratio", 0.5, (0.5,)),
        ("mask_ratio", "0.5", (0.5,)),
        ("mask_ratio", "0.15, 0.25,0.5", (0.15, 0.25, 0.5)),
        ("mask_ratio", [0, "0.5"], (0.0, 0.5)),
        ("learning_rate", ["1e-4", 1], (1e-4, 1.0)),  # YAML reads 1e-4 as text
        ("learning_rate", np.array([0.5, 1]), (0.5, 1.0)),
        ("set_size", range(2, 5), (2, 3, 4)),
        ("set_size", np.int64(4), (4,)),
        ("masked_clips", [None, 2], (None, 2)),
        ("clip_objective", "contrast, cosine", ("contrast", "cosine")),
        ("mask_ratio", "0.1..0.9", Range(0.1, 0.9)),
        ("mask_ratio", " 0 .. .5 ", Range(0.0, 0.5)),
        ("learning_rate", "log:1e-4..1e-2", Range(1e-4, 1e-2, log=True)),
        ("set_weight", uniform(1, 2), Range(1.0, 2.0)),
        ("set_size", "4..8", Range(4, 8)),
        ("batch", log_uniform(8, 512), Range(8, 512, log=True)),
    ],
)
def test_lists_ranges_and_texts_are_read_with_the_types_of_the_option(name, value, domain):
    read = domain_of(name, value)
    assert read == domain
    assert list(map(type, lowest_and_highest(read))) == list(map(type, lowest_and_highest(domain)))
    if None not in lowest_and_highest(read):
        assert domain_of(name, domain_text(read)) == read, "the text of a domain stands for it"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mask_ratio", "0.15,1.5", r"mask_ratio: expected a value in \[0, 1\), found 1.5"),
        ("mask_ratio", "0.15,", "mask_ratio: expected a value of type float, found ''"),
        ("mask_ratio", [0.1, True], "mask_ratio: expected a value of type float, found True"),
        ("mask_ratio", [0.1, [0.2]], r"expected a value of type float, found \[0.2\]"),
        ("mask_ratio", {"low": 0.1}, "expected a value of type float, found {'low': 0.1}"),
        ("mask_ratio", [0.1, uniform(0.2, 0.3)], "expected a value of type float, found Range"),
        ("set_size", "4,nine", "set_size: expected a value of type int, found 'nine'"),
        ("set_size", [4.0], "set_size: expected a value of type int, found 4.0"),
        ("candidates", "all,none", "candidates: expected a value one of all, masked, found 'none'"),
        ("mask_ratio", [], "mask_ratio: expected different values to try, found none"),
        ("set_weight", [1, 1.0], "set_weight: expected different values to try, found 1.0,1.0"),
        ("learning_rate", "1e-3,inf", "learning_rate: expected finite numbers to try, found 0.001,inf"),
        ("learning_rate", "nan", "learning_rate: expected a value above 0, found nan"),
        ("learning_rate", [10**400], "learning_rate: expected a value of type float, found 1000"),
        ("mask_ratio", "0.9..0.1", "mask_ratio: expected LOW..HIGH or log:LOW..HIGH in ascending order, .*'0.9..0.1'"),
        ("mask_ratio", "log:0..0.1", "with LOW above 0 after log:, found 'log:0..0.1'"),
        ("mask_ratio", "0.1..0.2,0.3", "expected LOW..HIGH .*, found '0.1..0.2,0.3'"),
        ("learning_rate", "1e-4...1e-2", "expected LOW..HIGH .*, found '1e-4...1e-2'"),
        ("candidates", "all..masked", "candidates: expected LOW..HIGH .*, found 'all..masked'"),
        ("candidates", uniform(1, 2), "candidates: expected a value one of all, masked, found '1'"),
        ("mask_ratio", "0.5..1.5", r"mask_ratio: expected a value in \[0, 1\), found 1.5"),
        ("set_size", "4..8.5", "set_size: expected a value of type int, found 8.5"),
        ("set_size", f"1..{10**400}", "set_size: expected LOW..HIGH"),
        ("learning_rate", f"1..{10**400}", "learning_rate: expected LOW..HIGH"),
        # The option takes both ends, but not what is between them.
        (
            "width",
            "32..256",
            "width: expected a value a multiple of 32, found 35, in the range 32..256; list the values",
        ),
    ],
)
def test_what_the_option_does_not_take_is_refused_in_one_line(name, value, message):
    with pytest.raises(UserError, match=message) as refused:
        domain_of(name, value)
    assert str(refused.value).startswith(f"{name}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("ends", "log"),
    [((1, 1), False), ((2, 1), False), ((0.1, np.inf), False), ((np.nan, 1), False), ((0, 1), True), (("1", 2), False)],
)
def test_a_range_needs_two_numbers_in_ascending_order(ends, log):
    with pytest.raises(UserError, match=r"expected a range of numbers.* in ascending order, found "):
        Range(*ends, log=log)


def test_a_range_of_whole_numbers_has_both_ends_and_all_are_as_likely():
    drawn = Counter(uniform(4, 8).value_at(number / 1000) for number in range(1000))
    assert drawn == dict.fromkeys(range(4, 9), 200)
    assert all(type(value) is int for value in drawn)


def test_a_log_range_of_whole_numbers_has_both_ends_and_as_many_of_each_magnitude():
    drawn = Counter(log_uniform(1, 127).value_at(number / 7000) for number in range(7000))
    magnitudes = Counter(value.bit_length() for value in drawn.elements())
    assert (min(drawn), max(drawn)) == (1, 127)
    assert all(abs(count - 1000) <= 1 for count in magnitudes.values())


@pytest.mark.parametrize(
    ("domain", "quarter"),
    [(uniform(0.1, 0.9), 0.3), (log_uniform(1e-4, 1), 1e-3), (log_uniform(1e-300, 1e300), 1e-150)],
)
def test_a_fraction_of_a_range_lies_below_a_value(domain, quarter):
    assert domain.value_at(0.25) == pytest.approx(quarter)
    values = [domain.value_at(share) for share in (0, 0.25, 0.5, 1 - 2**-53)]
    assert values == sorted(values)
    assert all(domain.low <= value <= domain.high for value in values)


def test_a_setting_is_named_without_its_sections():
    assert setting_name({"sets.mask_ratio": 0.123456, "sets.set_size": 8}) == "mask_ratio 0.1235, set_size 8"
    assert setting_name({}) == "the options"


def test_a_single_value_is_checked_as_the_section_checks_it():
    assert read_value(AggregatorOptions, "width", "64") == AggregatorOptions(width=64).width
    with pytest.raises(UserError, match="width: expected a value a multiple of 32, found 65"):
        read_value(AggregatorOptions, "width", 65)
