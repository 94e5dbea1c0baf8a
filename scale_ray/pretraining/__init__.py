"""Self-supervised training of the aggregator."""

from scale_ray.pretraining.provenance import check_compatible, provenance_notes, trained_on
from scale_ray.pretraining.trainer import (
    Metrics,
    Trainer,
    check_trainable,
    final_weights,
    fit,
    is_monitored,
    run_epochs,
)

__all__ = [
    "Metrics",
    "Trainer",
    "check_compatible",
    "check_trainable",
    "final_weights",
    "fit",
    "is_monitored",
    "provenance_notes",
    "run_epochs",
    "trained_on",
]
