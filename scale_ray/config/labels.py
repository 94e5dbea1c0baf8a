"""Selectors of nodes by their labels, in Ray's syntax: `KEY=VALUE,...`.

A value is `x`, `!x`, `in(x,y)` or `!in(x,y)`; a node matches if all keys do. As in Ray, a node without a key matches
the negated values of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from scale_ray.config.option import Check

# As Ray and Kubernetes name them.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = rf"(?:{_NAME}/)?{_NAME}"
_VALUE = rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))"
_PAIR = re.compile(rf"({_KEY})=({_VALUE})")


def parse_labels(text: str | None) -> dict[str, str]:
    """A selector as Ray takes it: the condition of each key; None selects all nodes.

    Raises
    ------
    ValueError
        If the text is no selector, or has a key twice.
    """
    if text is None:
        return {}
    selector: dict[str, str] = {}
    # A comma between parentheses does not end a pair.
    for pair in re.split(r",(?![^()]*\))", text):
        match = _PAIR.fullmatch(pair.strip())
        if match is None or match[1] in selector:
            raise ValueError(text)
        selector[match[1]] = match[2]
    return selector


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels meets all conditions of a selector."""
    return all(_meets(condition, labels.get(key)) for key, condition in selector.items())


def _meets(condition: str, label: str | None) -> bool:
    wanted = condition.removeprefix("!")
    values = wanted[3:-1].replace(" ", "").split(",") if wanted.startswith("in(") else [wanted]
    return (label in values) != condition.startswith("!")


def _is_selector(text: str) -> bool:
    try:
        parse_labels(text)
    except ValueError:
        return False
    return True


SELECTOR = Check("KEY=VALUE,... with values x, !x, in(x,y) or !in(x,y)", _is_selector)
