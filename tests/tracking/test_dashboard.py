"""MLflow's page of a sweep, as a browser shows it: the list of runs, the run of the sweep and of a trial, its files."""

import io
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from support.browser import Page, browsing
from support.servers import free_port, serving
from support.stores import make_store
from support.sweeps import trials_of

from scale_ray.config import SweepConfig, Tracking, setting_name
from scale_ray.console import Console
from scale_ray.distributed.trials import SEED
from scale_ray.search import FAILED, FINISHED, STOPPED, TrialResults, grid_settings, key_of, ranked
from scale_ray.stages.sweep import SweepResult, _described, _files, _parent_run, _record, _resolved
from scale_ray.store import training_clips
from scale_ray.tracking import Experiment, RunFolder, server_command, server_environment

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SPACE = {"sets.set_size": (4, 8), "sets.mask_ratio": (0.15, 0.25)}
# Whoever made the videos may have named a file like this, which an error then names.
REASON = "cannot read <img src=/x onerror=\"document.title='run'\"> **b** [c](https://d.example)"


@dataclass
class Dashboard:
    """A page of a browser, and the sweep that the server shows."""

    page: Page
    address: str
    experiment_id: str
    run_id: str
    result: SweepResult
    # The ids of the trials' runs by their names.
    trials: dict[str, str]

    def open(self, path: str = "", **query: str) -> Page:
        """Open the page of the experiment, or one below it."""
        # As `scale-ray ui` prints it: otherwise a new browser shows the page for applications of language models.
        asked = "&".join(f"{name}={value}" for name, value in {"workflowType": "machine_learning", **query}.items())
        self.page.open(f"{self.address}/#/experiments/{self.experiment_id}/runs{path}?{asked}")
        return self.page


def state_of(number, seed):
    """Of the four settings, one is stopped early and one fails."""
    return {1: STOPPED, 2: FAILED}.get(number, FINISHED)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard")
    with browsing(folder / "profile") as page, pytest.MonkeyPatch.context() as patched:
        experiment, run_id, result = recorded(folder)
        tracking, runs, port = Tracking(experiment="sweeps"), str(folder / "runs"), free_port()
        for name, value in server_environment(tracking, runs).items():
            patched.setenv(name, value)
        program, *arguments = server_command(tracking, runs, "127.0.0.1", port)
        with serving(program, *arguments, port=port, within_s=60):
            children = experiment._client.search_runs([experiment._id], f"tags.`mlflow.parentRunId` = '{run_id}'")
            trials = {run.info.run_name: run.info.run_id for run in children}
            address = f"http://127.0.0.1:{port}"
            yield Dashboard(page, address, experiment._id, run_id, result, trials)


def recorded(folder):
    """Record a sweep of eight trials as the command does, but with made-up results."""
    features = {f"video{number}": np.random.default_rng(number).normal(size=(16, 5)) for number in range(40)}
    store = make_store(folder / "store", features, sides=["train"] * 40, label=["a", "b"] * 20)
    clips, _ = training_clips(store)
    config = _resolved(SweepConfig(space=SPACE, tracking=Tracking(experiment="sweeps")), store, clips)
    run_folder, console = RunFolder(str(folder / "runs"), "mask-and-size"), Console(quiet=True)
    trials = trials_of(grid_settings(SPACE), lambda setting: setting["sets.set_size"] / 10, 2, state_of)
    trials = [replace(trial, reason=REASON) if trial.state == FAILED else trial for trial in trials]
    results = TrialResults(run_folder.location)
    for trial in trials:
        results.write(key_of(config, trial.setting, trial.seed), trial)
    experiment = Experiment(config.tracking, run_folder.runs, console)
    described = _described(config, store, clips)
    with _parent_run(experiment, run_folder, described, results, config, console) as parent:
        result = SweepResult(ranked(trials), trials, "knn_top1", len(clips), 4, 8, 1.0, run_folder.location, None)
        result = replace(result, files=_files(result, config, run_folder.name, console))
        _record(parent, result, config)
    return experiment, parent.run_id, result


def test_the_list_shows_the_sweep_and_its_trials_below_it(dashboard):
    page = dashboard.open()
    shown = page.wait_for("mask-and-size", f"{1 + len(dashboard.trials)} matching runs")
    assert not [name for name in dashboard.trials if name in shown]
    page.evaluate("document.querySelector('.ag-row button').click()")  # of the only row: shows what is below it
    page.wait_for(*dashboard.trials)


def test_the_trials_can_be_sorted_by_their_objective(dashboard):
    page = dashboard.open(orderByKey="metrics.%60objective%60", orderByAsc="false")
    shown = page.wait_for("mask-and-size", *dashboard.trials)
    listed = re.findall(r"^set_size \d, mask_ratio [\d.]+, seed \d$|^mask-and-size$", shown, re.MULTILINE)
    assert len(listed) == 1 + len(dashboard.trials)
    values = {setting_name({**trial.setting, SEED: trial.seed}): trial.value for trial in dashboard.result.trials}
    # Failed trials and the sweep itself have none, and come last.
    assert [values[name] for name in listed[:6]] == sorted(
        (value for value in values.values() if value == value), reverse=True
    )


def test_the_run_of_the_sweep_shows_the_best_setting_metrics_options_and_state(dashboard):
    page = dashboard.open(f"/{dashboard.run_id}")
    shown = page.wait_for("Best setting: set_size 8, mask_ratio 0.25", "best_objective", "scale_ray.best.set_size")
    lines = shown.splitlines()
    assert lines[lines.index("Status") + 1] == "Finished"
    assert float(lines[lines.index("best_objective") + 1]) == pytest.approx(dashboard.result.best.value, abs=1e-3)
    assert lines[lines.index("failed_trials") + 1] == "2"
    assert lines[lines.index("sets.mask_ratio") + 1] == "0.15,0.25"
    assert lines[lines.index("searching.rank_by") + 1] == "knn"
    assert lines[lines.index("scale_ray.best.mask_ratio") + 1] == ": 0.25"
    heads = page.evaluate("[...document.querySelector('table').querySelectorAll('th')].map(head => head.innerText)")
    assert [head.strip() for head in heads] == [
        *("set_size", "mask_ratio", "mean", "95 % interval", "seeds", "epochs", "state")
    ]


def test_a_text_from_an_error_stays_a_text_in_descriptions(dashboard):
    page = dashboard.open(f"/{dashboard.run_id}")
    page.wait_for(f"failed: {REASON}")
    page = dashboard.open(f"/{dashboard.trials['set_size 8, mask_ratio 0.15, seed 0']}")
    page.wait_for(f"failed after 0 epochs: {REASON}")
    assert page.evaluate("document.querySelectorAll('img[src=\"/x\"]').length") == 0
    assert page.evaluate("document.title") != "run"


@pytest.mark.parametrize(
    ("setting", "status", "description"),
    [
        ("set_size 4, mask_ratio 0.15", "Finished", "No description"),
        ("set_size 4, mask_ratio 0.25", "Finished", "stopped early after 8 epochs"),
        ("set_size 8, mask_ratio 0.15", "Failed", "failed after 0 epochs"),
    ],
)
def test_a_trial_shows_its_state_and_leads_to_its_sweep(dashboard, setting, status, description):
    page = dashboard.open(f"/{dashboard.trials[f'{setting}, seed 1']}")
    lines = page.wait_for("Parent run", "mask-and-size", description, "sets.mask_ratio").splitlines()
    assert lines[lines.index("Status") + 1] == status
    assert lines[lines.index("Parent run") + 1] == "mask-and-size"
    assert lines[lines.index("seed") + 1] == "1"


def test_a_picture_is_shown(dashboard):
    width_px = Image.open(io.BytesIO(dashboard.result.files["heatmap.png"])).width
    page = dashboard.open(f"/{dashboard.run_id}/artifacts/heatmap.png")
    page.wait_for("settings.csv", "best.yaml")
    page.wait_until(f"[...document.images].some(image => image.naturalWidth == {width_px})")


def test_the_interactive_page_is_shown_with_its_figures(dashboard):
    page = dashboard.open(f"/{dashboard.run_id}/artifacts/sweep.html")
    page.wait_for("sweep.html", "settings.csv")
    frame = page.frame("blob")
    shown = frame.wait_for("Settings, best first", "Two options", "Progress", "Objective by epoch")
    assert f"failed: {REASON}" in shown
    num_figures = frame.evaluate("document.querySelectorAll('.plotly-graph-div').length")
    assert num_figures >= 4
    frame.wait_until(f"document.querySelectorAll('.plotly-graph-div:has(svg.main-svg)').length == {num_figures}")
