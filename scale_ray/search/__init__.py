"""The search for settings, without Ray: which settings to try, the results of trials, and what they say."""

from scale_ray.search.ranking import SettingResult, ranked
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
    "grid_settings",
    "key_of",
    "random_settings",
    "ranked",
]
