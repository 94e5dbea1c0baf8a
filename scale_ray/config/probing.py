"""Options of what is done with a trained aggregator: probes, vectors, the search for its settings."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.option import Check, Options, above, at_least, each, one_of, option
from scale_ray.config.pretraining import Ingest, Splits
from scale_ray.config.runtime import Tracking
from scale_ray.config.stage import StageConfig

# The probes by name, in the order of the table.
PROBES = ("knn", "linear", "mlp", "attentive", "finetuned", "lowshot", "retrieval", "clustering")


@dataclass(frozen=True)
class Probing(Options):
    """What the representations are measured by, and how (section 4 of the paper)."""

    section = "probing"

    probes: tuple[str, ...] = option(
        ("knn", "linear", "retrieval", "clustering"),
        "Probes by name, or all.",
        check=each(one_of(*PROBES, "all")),
        main=True,
    )
    target: str = option("auto", "Column that is told, such as label.", main=True)
    probe_seeds: int = option(1, "Seeds of the probes, from --probe-seed on.", check=at_least(1), main=True)
    probe_seed: int = option(0, "First seed of the probes.", check=at_least(0))
    knn_k: tuple[int, ...] = option(
        (20, 5, 10, 50),
        "Neighbours that vote; the first is shown, the others are in the files.",
        check=each(at_least(1)),
    )
    knn_temperature: tuple[float, ...] = option((0.07,), "Temperatures of the votes, likewise.", check=each(above(0)))
    learning_rates: tuple[float, ...] = option(
        (3e-4, 1e-3, 3e-3),
        "Learning rates of trained probes, chosen from on a part of the training split.",
        check=each(above(0)),
    )
    weight_decays: tuple[float, ...] = option(
        (1e-4, 1.0), "Weight decays of trained probes, likewise.", check=each(at_least(0))
    )
    choice_share: float = option(
        0.2,
        "Share of the training split, by group, that chooses where no validation videos are given.",
        check=Check("in (0, 1)", lambda value: 0 < value < 1),
    )
    probe_epochs: int = option(60, "Epochs of trained probes.", check=at_least(1))
    probe_min_steps: int = option(700, "Least steps of them: a small corpus gets more epochs.", check=at_least(1))
    probe_draws: int = option(16, "Draws of clip sets before they come round again.", check=at_least(1))
    probe_batch: int = option(512, "Videos of one batch.", check=at_least(1))
    probe_set_size: int = option(8, "Clips of the random sets that they train on.", check=at_least(1))
    deep_epochs: int = option(20, "Epochs of the probes attentive and finetuned.", check=at_least(1))
    deep_batch: int = option(64, "Videos of one batch of them.", check=at_least(1))
    deep_min_steps: int = option(300, "Least steps of mlp, attentive and finetuned.", check=at_least(1))
    low_shot: tuple[float, ...] = option(
        (0.01, 0.05, 0.1, 1, 5),
        "Labels of the low-shot probe: shares of each class below 1, videos of each class from 1 on.",
        check=each(above(0)),
    )
    resamples: int = option(1000, "Resamples of the test videos behind the intervals.", check=at_least(1))

    @property
    def chosen_probes(self) -> tuple[str, ...]:
        """The probes asked for, in the order of the table."""
        return tuple(name for name in PROBES if name in self.probes or "all" in self.probes)


@dataclass(frozen=True)
class Representing(Options):
    """From a video's clips to its representation (section 5 of the method)."""

    section = "representing"

    ensemble: int = option(
        0, "Clips of the sets that a video's clips are dealt into; 0: all in one set.", check=at_least(0)
    )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(StageConfig):
    """The options of `probe`."""

    probing: Probing = Probing()
    representing: Representing = Representing()
    splits: Splits = Splits()
    ingest: Ingest = Ingest()
    tracking: Tracking = Tracking()
