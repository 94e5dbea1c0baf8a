"""Made-up results of sweeps."""

import numpy as np

from scale_ray.search import FAILED, FINISHED, STOPPED, SettingResult, TrialResult

NUM_BLOCKS, BLOCK = 20, 10


def trial(setting, seed, value, state=FINISHED, epochs=20, began_s=0.0):
    """A trial whose objective is about `value`, with a curve that rises to it."""
    if state == FAILED:
        return TrialResult(
            setting, seed, FAILED, monitor="knn_top1", began_s=began_s, seconds=5.0, reason="out of memory"
        )
    random = np.random.default_rng([seed, int(value * 1e6)])
    blocks = [[int(right), BLOCK] for right in random.binomial(BLOCK, min(max(value, 0), 1), NUM_BLOCKS)]
    final = sum(right for right, _ in blocks) / (NUM_BLOCKS * BLOCK)
    curve = [[epoch, final * (1 - 0.6 * np.exp(-4 * epoch / epochs))] for epoch in range(1, epochs)]
    curve.append([epochs, final])
    return TrialResult(
        setting,
        seed,
        state,
        monitor="knn_top1",
        blocks=blocks,
        curve=curve,
        epochs=epochs,
        seconds=40.0 + epochs,
        began_s=began_s,
    )


def trials_of(settings, value, num_seeds=3, state=lambda number, seed: FINISHED):
    """The trials of all settings, one after the other; `value` gives the objective of a setting."""
    trials = []
    for number, setting in enumerate(settings):
        for seed in range(num_seeds):
            ends_as = state(number, seed)
            epochs = 8 if ends_as == STOPPED else 20
            trials.append(trial(setting, seed, value(setting), ends_as, epochs, began_s=60.0 * number + seed))
    return trials


def all_failed(settings):
    """The results and the trials of settings that all failed."""
    nan, reason = float("nan"), "out of memory"
    results = [SettingResult(s, FAILED, nan, nan, nan, {}, nan, nan, nan, False, 0, 5.0, [reason]) for s in settings]
    return results, [trial(result.setting, 0, nan, FAILED) for result in results]
