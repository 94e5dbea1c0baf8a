"""Self-supervised training of the aggregator."""

from scale_ray.pretraining.provenance import notes_on, require_width, trained_on
from scale_ray.pretraining.trainer import Metrics, Trainer, check_trainable, final_weights, fit

__all__ = [
    "Metrics",
    "Trainer",
    "check_trainable",
    "final_weights",
    "fit",
    "notes_on",
    "require_width",
    "trained_on",
]
