"""Selectors of nodes by their labels."""

import pytest

from scale_ray.config import Extraction, matches, parse_labels
from scale_ray.errors import UserError


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        (None, {}),
        ("tier=cpu", {"tier": "cpu"}),
        ("ray.io/accelerator-type=H100, tier=!spot", {"ray.io/accelerator-type": "H100", "tier": "!spot"}),
        ("zone=in(a,b),tier=!in(x, y)", {"zone": "in(a,b)", "tier": "!in(x, y)"}),
    ],
)
def test_a_selector_is_read_as_ray_takes_it(text, selector):
    assert parse_labels(text) == selector
    from ray._private.label_utils import validate_label_selector

    assert validate_label_selector(selector) is None


@pytest.mark.parametrize("text", ["", "tier", "tier=", "=cpu", "tier=cpu,", "tier=in()", "tier=a b", "tier=a,tier=b"])
def test_what_is_no_selector_is_refused(text):
    with pytest.raises(UserError, match=r"actor_labels: expected a value KEY=VALUE,\.\.\. with values x, !x"):
        Extraction(actor_labels=text)


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("tier=cpu", True),
        ("tier=gpu", False),
        ("tier=!gpu", True),
        ("tier=!cpu", False),
        ("tier=in(gpu,cpu)", True),
        ("tier=!in(gpu, cpu)", False),
        ("zone=a", False),
        ("zone=!a", True),
        ("tier=cpu,zone=a", False),
    ],
)
def test_a_node_matches_if_it_meets_every_condition(text, is_met):
    assert matches(parse_labels(text), {"tier": "cpu"}) is is_met
