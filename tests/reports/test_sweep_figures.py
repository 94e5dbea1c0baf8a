import io
import itertools
import logging
import math
import warnings

import optuna
import pytest
from PIL import Image
from support.sweeps import all_failed, trial, trials_of

from scale_ray.config import Range
from scale_ray.reports import option_importance, sweep_figures
from scale_ray.reports.sweep_data import Scale, heat_map_of, objective_title, option_means, progress_of
from scale_ray.search import FAILED, FINISHED, STOPPED, grid_settings, random_settings, ranked

GRID = {"sets.set_size": (4, 8, 16), "sets.mask_ratio": (0.15, 0.25, 0.5)}
RANGES = {
    "training.learning_rate": Range(1e-4, 1e-2, log=True),
    "sets.mask_ratio": Range(0.1, 0.9),
    "aggregator.layers": Range(1, 4),
    "objective.clip_objective": ("contrast", "predict"),
}
ALL = ["heatmap.png", "options.png", "parallel.png", "importance.png", "progress.png", "curves.png"]


def grid_value(setting):
    return 0.4 + 0.3 * (setting["sets.mask_ratio"] == 0.25) + 0.005 * setting["sets.set_size"]


def names_of(trials, space):
    return list(sweep_figures(ranked(trials), trials, space))


def sizes_of(trials, space):
    """The width and the height in pixels of each figure."""
    pictures = {
        name: Image.open(io.BytesIO(draw())) for name, draw in sweep_figures(ranked(trials), trials, space).items()
    }
    assert {picture.format for picture in pictures.values()} == {"PNG"}
    return {name: picture.size for name, picture in pictures.items()}


def test_a_grid_of_two_options_has_all_figures():
    trials = trials_of(grid_settings(GRID), grid_value)
    sizes = sizes_of(trials, GRID)
    assert list(sizes) == ALL
    assert all(width > 500 and height > 150 for width, height in sizes.values())


def test_a_failed_setting_and_a_failed_trial_are_drawn():
    trials = trials_of(
        grid_settings(GRID), grid_value, state=lambda n, seed: FAILED if n == 3 or (n, seed) == (5, 1) else FINISHED
    )
    assert list(sizes_of(trials, GRID)) == ALL


def test_a_search_in_ranges_with_stopped_settings_has_no_heat_map():
    settings = list(itertools.islice(random_settings(RANGES, 0), 30))
    trials = trials_of(settings, lambda s: 0.1 * s["aggregator.layers"], 2, lambda n, _: STOPPED if n % 2 else FINISHED)
    assert list(sizes_of(trials, RANGES)) == ALL[1:]


def test_one_option_has_neither_heat_map_nor_parallel_coordinates_nor_importance():
    space = {"sets.set_size": (4, 8, 16, 32), "sets.mask_ratio": (0.5,)}
    trials = trials_of(grid_settings(space), lambda s: s["sets.set_size"] / 40)
    assert list(sizes_of(trials, space)) == ["options.png", "progress.png", "curves.png"]


def test_a_sweep_without_a_result_has_no_figures():
    assert names_of([], GRID) == []
    assert sweep_figures(*all_failed(grid_settings(GRID)), GRID) == {}


def test_a_sweep_of_which_nothing_ran_to_the_end_has_no_importance():
    trials = trials_of(grid_settings(GRID), grid_value, state=lambda *_: STOPPED)
    assert list(sizes_of(trials, GRID)) == [name for name in ALL if name != "importance.png"]


def test_trials_without_curves_and_equal_objectives_are_drawn():
    settings = list(grid_settings(GRID))
    trials = [trial(setting, 0, 1.0, epochs=1) for setting in settings]
    assert list(sizes_of(trials, GRID)) == ["heatmap.png", "options.png", "parallel.png", "progress.png"]


def test_many_options_trials_and_long_values_of_any_text_are_drawn():
    texts = ("$\\frac{x$", "a long value / " * 20, "<b>&", "line\nbreak")
    space = {f"training.option_{n}": Range(1e-5, 1.0, log=True) if n % 2 else texts for n in range(12)}
    settings = list(itertools.islice(random_settings(space, 0), 67))
    width, height = sizes_of(trials_of(settings, lambda s: s["training.option_1"] ** 0.1), space)["options.png"]
    assert 1000 < width < 2000
    assert 900 < height < 2000


@pytest.mark.parametrize("decisive", GRID | RANGES)
def test_the_only_option_that_matters_is_by_far_the_most_important(decisive):
    space = GRID | RANGES | {"sets.mask_ratio": (0.15, 0.25, 0.5)}
    settings = list(itertools.islice(random_settings(space, 1), 60))
    scale = Scale.of(decisive, space[decisive])
    low, high = scale.ends
    trials = trials_of(settings, lambda s: 0.2 + 0.6 * (scale.at(s[decisive]) - low) / (high - low), 1)
    [(first, most), (_, second), *others] = option_importance(ranked(trials), space).items()
    assert first == decisive
    assert most > 10 * second
    assert most + second + sum(value for _, value in others) == pytest.approx(1)
    assert len(others) == len(space) - 2


@pytest.mark.parametrize(("num_settings", "space"), [(3, GRID), (3, {"sets.set_size": (4, 8, 16)})])
def test_too_few_settings_or_options_have_no_importance(num_settings, space):
    settings = list(itertools.islice(grid_settings(space), num_settings))
    assert option_importance(ranked(trials_of(settings, lambda s: s["sets.set_size"] / 20)), space) == {}


def test_importance_silences_optuna_and_restores_its_verbosity():
    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    logging.getLogger("optuna").addHandler(handler)
    try:
        assert option_importance(ranked(trials_of(grid_settings(GRID), grid_value)), GRID)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        logging.getLogger("optuna").removeHandler(handler)
        optuna.logging.set_verbosity(before)
    assert logged == []


def test_the_heat_map_is_over_mask_ratio_and_set_size_and_marks_the_best_cell():
    space = {"aggregator.layers": (1, 2), **GRID}
    trials = trials_of(grid_settings(space), grid_value, state=lambda n, _: FAILED if n == 4 else FINISHED)
    settings = ranked(trials)
    heat_map = heat_map_of(settings, space)
    assert (heat_map.rows.title, heat_map.columns.title) == ("mask_ratio", "set_size")
    [best] = [place for place, cell in heat_map.cells.items() if cell.is_best]
    assert heat_map.cells[best].settings[0] == settings[0]
    mask_ratio, set_size = heat_map.rows.values[best[0]], heat_map.columns.values[best[1]]
    assert settings[0].setting == settings[0].setting | {"sets.mask_ratio": mask_ratio, "sets.set_size": set_size}
    assert heat_map.means()[best] == pytest.approx(sum(r.value for r in heat_map.cells[best].settings) / 2)
    assert heat_map.cells[1, 1].lines()[-1] == "1 of 2 failed"


def test_a_cell_tells_the_mean_and_half_of_the_interval_or_why_it_has_none():
    trials = trials_of(
        grid_settings(GRID), grid_value, state=lambda n, seed: FAILED if n == 0 or (n, seed) == (8, 2) else FINISHED
    )
    settings = ranked(trials)
    cells = heat_map_of(settings, GRID).cells
    assert cells[0, 0].lines() == ["failed"]
    [result] = cells[2, 2].settings
    assert cells[2, 2].lines() == [f"{result.value:.3f}", f"±{(result.high - result.low) / 2:.3f}", "1 trial failed"]


def test_two_listed_options_are_the_heat_map_if_the_default_ones_were_not_both_searched():
    space = {"sets.mask_ratio": Range(0.1, 0.5), "objective.candidates": ("all", "others"), "aggregator.layers": (1, 2)}
    trials = trials_of(itertools.islice(random_settings(space, 0), 5), lambda s: s["sets.mask_ratio"])
    heat_map = heat_map_of(ranked(trials), space)
    assert (heat_map.rows.title, heat_map.columns.title) == ("candidates", "layers")


def test_the_best_mean_counts_settings_whose_trials_have_all_ended():
    values = {4: 0.3, 8: 0.9, 16: 0.6}
    settings = [{"sets.set_size": size} for size in values]
    trials = trials_of(settings, lambda s: values[s["sets.set_size"]], 2, lambda n, _: STOPPED if n == 1 else FINISHED)
    results = {result.setting["sets.set_size"]: result.value for result in ranked(trials)}
    progress = progress_of(ranked(trials), trials[::-1])
    assert progress.trials == trials
    assert math.isnan(progress.best[0])
    assert progress.best[1:] == [results[4]] * 4 + [results[16]]
    assert progress.unit == "min"
    assert progress.compute[-1] == pytest.approx((4 * 60 + 2 * 48) / 60)


def test_a_scale_places_listed_values_in_order_and_a_logarithmic_range_by_order_of_magnitude():
    assert Scale.of("sets.set_size", (16, 4, 8)).values == [4, 8, 16]
    assert Scale.of("objective.candidates", ("others", "all")).values == ["others", "all"]
    logarithmic = Scale.of("training.learning_rate", Range(1e-4, 1e-2, log=True))
    assert logarithmic.ends == pytest.approx((-4, -2))
    assert logarithmic.ticks()[1] == ["0.0001", "0.001", "0.01"]
    assert Scale.of("aggregator.layers", Range(1, 3)).ticks() == ([1.0, 2.0, 3.0], ["1", "2", "3"])
    assert Scale.of("sets.masked_clips", (None, 2)).at(None) == 0


def test_means_of_an_option_are_those_of_its_listed_values():
    results = ranked(trials_of(grid_settings(GRID), grid_value))
    places, means = option_means("sets.mask_ratio", Scale.of("sets.mask_ratio", GRID["sets.mask_ratio"]), results)
    of_first = [result.value for result in results if result.setting["sets.mask_ratio"] == 0.15]
    assert places == [0, 1, 2]
    assert means[0] == pytest.approx(sum(of_first) / 3)


def test_an_unknown_objective_is_named_as_it_is():
    assert objective_title([]) == "objective"
    assert objective_title(trials_of(grid_settings(GRID), grid_value)) == "k-NN top-1 of held-out training videos"


def test_figures_give_no_warnings():
    trials = trials_of(grid_settings(GRID), grid_value, state=lambda n, _: FAILED if n == 3 else FINISHED)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sizes_of(trials, GRID)
    assert [str(warning.message) for warning in caught] == []
