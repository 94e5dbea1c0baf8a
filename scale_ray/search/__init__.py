"""The search for settings, without Ray: which settings to try, the results of trials, and what they say."""

from scale_ray.search.folds import blocks_of, folds_of, right_by_block
from scale_ray.search.ranking import SettingResult, best_so_far, ranked
from scale_ray.search.settings import Setting, grid_settings, key_of, random_settings
from scale_ray.search.trials import FAILED, FINISHED, STOPPED, TrialResult, TrialResults

__all__ = [
    "FAILED",
    "FINISHED",
    "STOPPED",
    "Setting",
    "SettingResult",
    "TrialResult",
    "TrialResults",
    "best_so_far",
    "blocks_of",
    "folds_of",
    "grid_settings",
    "key_of",
    "random_settings",
    "ranked",
    "right_by_block",
]
