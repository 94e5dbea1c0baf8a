import itertools
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from support.sweeps import all_failed, trials_of

from scale_ray.config import Range
from scale_ray.reports import sweep_page
from scale_ray.search import FAILED, FINISHED, STOPPED, grid_settings, random_settings, ranked

GRID = {"sets.set_size": (4, 8), "sets.mask_ratio": (0.15, 0.25)}
NAMES = ["Two options", "Each option", "All options", "Importance", "Progress", "Objective by epoch"]


class Page(HTMLParser):
    """The elements, the attributes that name resources, and the texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.resources, self.texts = Counter(), [], {}
        self.scripts, self._open = [], ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.elements[tag] += 1
        self.resources += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        self._open = tag

    def handle_data(self, data):
        if self._open == "script":
            self.scripts.append(data)
        else:
            self.texts.setdefault(self._open, []).append(data)

    def handle_endtag(self, tag):
        self._open = ""


def page_of(space, value=lambda s: 0.5, title="a sweep", **options):
    settings = itertools.islice(random_settings(space, 0), 20)
    trials = trials_of(
        settings if any(isinstance(d, Range) for d in space.values()) else grid_settings(space), value, **options
    )
    return Page(sweep_page(ranked(trials), trials, space, title))


def by_set_size(setting):
    return setting["sets.set_size"] / 10


def headings(page):
    return [heading.partition(":")[0] for heading in page.texts["h2"]]


def test_a_grid_has_a_table_and_all_figures():
    page = page_of(GRID, by_set_size)
    assert headings(page)[0] == "Settings, best first"
    assert [heading.startswith(name) for heading, name in zip(headings(page)[1:], NAMES, strict=True)] == [True] * 6
    assert page.elements["tr"] == 5
    assert page.texts["th"][:3] == ["rank", "set_size", "mask_ratio"]
    assert page.texts["td"][:2] == ["1", "8"]
    assert page.texts["h1"] == ["a sweep"]


def test_the_page_names_no_other_resource_and_lets_the_browser_refuse_requests():
    page = page_of(GRID, by_set_size)
    assert page.resources == []
    assert set(page.elements) & {"link", "img", "iframe", "a", "object", "form", "base"} == set()
    [policy] = re.findall(
        rb'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', sweep_page([], [], GRID, "")
    )
    assert b"default-src 'none'" in policy
    assert b"http" not in policy


def test_plotly_is_included_once_and_without_its_button_that_sends_data_away():
    page = page_of(GRID, by_set_size)
    figures = [script for script in page.scripts if "Plotly.newPlot(" in script and len(script) < 1_000_000]
    assert len(figures) == len(NAMES)
    assert len([script for script in page.scripts if len(script) > 1_000_000]) == 1
    for figure in figures:
        assert '"showSendToCloud": false' in figure
        assert "http" not in figure


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</script><img src=x onerror=alert(1)>",
        '<a href="javascript:alert(1)">x</a>',
        "<b>",
    ],
)
def test_a_value_that_is_markup_is_a_text(text):
    harmless, page = (
        page_of({"objective.candidates": (value, "all"), **GRID}, by_set_size, title=value) for value in ("x", text)
    )
    assert page.elements == harmless.elements
    assert page.texts["h1"] == [text]
    assert text in page.texts["td"]
    # Plotly makes elements of some tags in texts, but not in those of parallel coordinates.
    figures = [script for script in page.scripts if "Plotly.newPlot(" in script and len(script) < 1_000_000]
    others = [figure for figure in figures if '"dimensions"' not in figure]
    assert len(others) == len(figures) - 1
    for figure in others:
        assert text[:10] not in figure.replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u002f", "/")


def test_ranges_stopped_and_failed_settings_are_on_the_page():
    space = {"training.learning_rate": Range(1e-4, 1e-2, log=True), "aggregator.layers": (1, 2)}
    states = {(0, 0): FAILED, (0, 1): FAILED, (0, 2): FAILED, (1, 0): STOPPED, (2, 1): FAILED}
    page = page_of(
        space, lambda s: s["aggregator.layers"] / 4, state=lambda n, seed: states.get((n % 5, seed), FINISHED)
    )
    assert [heading.startswith(name) for heading, name in zip(headings(page)[1:], NAMES[1:], strict=True)] == [True] * 5
    assert {"failed: out of memory", "finished, 1 failed: out of memory", "stopped early"} < set(page.texts["td"])


def test_a_sweep_without_a_result_has_the_table_alone():
    page = Page(sweep_page(*all_failed(grid_settings(GRID)), GRID, "a sweep"))
    assert headings(page) == ["Settings, best first"]
    assert page.elements["script"] == 0
    assert Page(sweep_page([], [], GRID, "nothing yet")).elements["tr"] == 1


def test_one_option_has_neither_parallel_coordinates_nor_importance():
    page = page_of({"sets.set_size": (2, 4, 8)}, by_set_size)
    assert [heading.split(" ")[0] for heading in headings(page)] == ["Settings,", "Each", "Progress", "Objective"]
