import pytest
from support.sweeps import trials_of

from scale_ray.config import Range
from scale_ray.reports import search_description, sweep_description
from scale_ray.reports.sweep_description import MAX_CHARACTERS
from scale_ray.search import FAILED, FINISHED, STOPPED, grid_settings, ranked

GRID = {"sets.set_size": (4, 8), "sets.mask_ratio": (0.15, 0.25)}
# A text of somebody else's, which must stay a text.
WICKED = "a|b <img src=x> [c](https://d) *e* __f__ `g`\n# h"


def described(space, value=lambda setting: 0.5, **options):
    trials = trials_of(grid_settings(space), value, **options)
    return sweep_description(ranked(trials), trials, space)


def rows(markdown):
    return [line for line in markdown.splitlines() if line.startswith("|")]


def test_the_best_setting_comes_first_and_a_table_follows():
    markdown = described(GRID, lambda setting: setting["sets.set_size"] / 10)
    assert markdown.startswith(r"**Best setting: set\_size 8, mask\_ratio 0.")
    heads = rows(markdown)[0].strip("| ").split("&emsp; | ")
    assert heads == [r"set\_size", r"mask\_ratio", "mean", "95 % interval", "seeds", "epochs", "state"]
    assert [row.split("&emsp;")[0] for row in rows(markdown)[2:]] == ["| 8", "| 8", "| 4", "| 4"]
    assert "k-NN top-1 of held-out training videos: 0." in markdown


def test_stopped_failed_and_equal_settings_are_told():
    def state(number, seed):
        return {2: STOPPED, 3: FAILED}.get(number, FINISHED)

    markdown = described(GRID, state=state, num_seeds=1)
    assert "Settings that cannot be told apart from it: 1 (=)." in markdown
    assert [row.rstrip(" |").rpartition("| ")[2] for row in rows(markdown)[2:]] == [
        "finished",
        "finished (=)",
        "stopped early",
        "failed: out of memory",
    ]


def test_a_clear_winner_has_no_equals():
    assert "All others are worse" in described({"sets.set_size": (4, 8)}, lambda setting: setting["sets.set_size"] / 10)


def test_texts_of_options_stay_texts():
    markdown = described({"training.pretrain_on": (WICKED, "train")})
    assert "<img" not in markdown
    assert r"a\|b" in markdown
    assert {row.count("|") - row.count(r"\|") for row in rows(markdown)} == {7}
    searched = search_description({"training.pretrain_on": (WICKED, "train")})
    assert "<img" not in searched
    assert r"\[c\](https://d) \*e\* \_\_f\_\_ \`g\`" in searched
    assert len(searched.splitlines()) == 3


@pytest.mark.parametrize("count", [40, 400])
def test_a_large_sweep_is_cut_at_a_row(count):
    markdown = described({"sets.set_size": tuple(range(count)), "training.pretrain_on": ("|" * 200,)}, num_seeds=1)
    assert len(markdown) <= MAX_CHARACTERS
    hidden = count - len(rows(markdown)[2:])
    assert 0 < hidden < count
    assert f"{hidden} more settings are in `settings.csv`" in markdown
    assert len({row.count(" | ") for row in rows(markdown)}) == 1


def test_what_is_searched_is_told_while_it_runs():
    space = {"sets.set_size": (4, 8), "sets.mask_ratio": (0.5,), "training.learning_rate": Range(1e-4, 1e-2, True)}
    assert search_description(space).splitlines() == [
        "Searched options:",
        "",
        r"- set\_size: 4,8",
        r"- learning\_rate: log:0.0001..0.01",
    ]
    assert search_description({}) == "No option has more than one value."
