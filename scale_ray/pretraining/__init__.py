"""Self-supervised training of the aggregator."""

from scale_ray.pretraining.provenance import check_compatible, provenance_notes, trained_on
from scale_ray.pretraining.trainer import Metrics, Trainer, check_trainable, final_weights, fit

__all__ = [
    "Metrics",
    "Trainer",
    "check_compatible",
    "check_trainable",
    "final_weights",
    "fit",
    "provenance_notes",
    "trained_on",
]
