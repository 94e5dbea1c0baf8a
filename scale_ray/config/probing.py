"""Options of what is done with a trained aggregator: probes, vectors, the search for its settings."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config.option import Check, Options, above, at_least, each, fraction, one_of, option
from scale_ray.config.pretraining import TRAINED_MODES, Ingest, Splits
from scale_ray.config.runtime import Tracking
from scale_ray.config.stage import StageConfig
from scale_ray.errors import UserError

# The probes by name, in the order of the table.
PROBES = ("knn", "linear", "mlp", "attentive", "finetuned", "lowshot", "retrieval", "clustering")

# The parts of a representation, in the order in which they are concatenated.
PARTS = ("x", "c", "h", "h_mean")


@dataclass(frozen=True)
class Probing(Options):
    """Which probes measure the representations, and how (section 4 of the paper)."""

    section = "probing"

    probes: tuple[str, ...] = option(
        ("knn", "linear", "retrieval", "clustering"),
        "Names of the probes, or all.",
        check=each(one_of(*PROBES, "all")),
        main=True,
    )
    probe_mode: str = option(
        "train",
        "Clips of the training videos to fit probes on: train, augmented, or both as one pool per video.",
        check=one_of(*TRAINED_MODES),
    )
    target: str = option("auto", "Column to predict, for example label.", main=True)
    probe_seeds: int = option(1, "Number of seeds, beginning with --probe-seed.", check=at_least(1), main=True)
    probe_seed: int = option(0, "First seed of the probes.", check=at_least(0))
    knn_k: tuple[int, ...] = option(
        (20, 5, 10, 50),
        "Numbers of neighbours; the first is in the table, the others only in the files.",
        check=each(at_least(1)),
    )
    knn_temperature: tuple[float, ...] = option(
        (0.07,),
        "Temperatures of the votes; the first is in the table, the others only in the files.",
        check=each(above(0)),
    )
    learning_rates: tuple[float, ...] = option(
        (3e-4, 1e-3, 3e-3),
        "Learning rates to try for trained probes; one is chosen on a part of the training split.",
        check=each(above(0)),
    )
    weight_decays: tuple[float, ...] = option(
        (1e-4, 1.0),
        "Weight decays to try for trained probes; one is chosen on a part of the training split.",
        check=each(at_least(0)),
    )
    choice_share: float = option(
        0.2,
        "Fraction of the training split, by group, on which settings are chosen if there are no validation videos.",
        check=Check("in (0, 1)", lambda value: 0 < value < 1),
    )
    probe_epochs: int = option(60, "Epochs of trained probes.", check=at_least(1))
    probe_min_steps: int = option(
        700, "Minimum number of training steps; small corpora get more epochs.", check=at_least(1)
    )
    probe_warmup_share: float = option(
        0.05, "Fraction of the steps of trained probes with a rising learning rate.", check=fraction(with_one=False)
    )
    probe_draws: int = option(16, "Number of different draws of clip sets; then they repeat.", check=at_least(1))
    probe_batch: int = option(512, "Videos per batch of trained probes.", check=at_least(1))
    probe_set_size: int = option(8, "Clips per random set of trained probes.", check=at_least(1))
    deep_epochs: int = option(20, "Epochs of the probes attentive and finetuned.", check=at_least(1))
    deep_batch: int = option(64, "Videos per batch of the probes attentive and finetuned.", check=at_least(1))
    deep_min_steps: int = option(300, "Minimum number of training steps of attentive and finetuned.", check=at_least(1))
    low_shot: tuple[float, ...] = option(
        (0.01, 0.05, 0.1, 1, 5),
        "Labels of the low-shot probe: below 1 a fraction of each class, from 1 on a number of videos per class.",
        check=each(above(0)),
    )
    token_weights: tuple[float, ...] = option(
        (),
        "Values of --token-weight to try; one per aggregator is chosen by k-NN among the training videos.",
        check=each(above(0)),
    )
    resamples: int = option(1000, "Bootstrap resamples of the test videos, for the intervals.", check=at_least(1))

    @property
    def chosen_probes(self) -> tuple[str, ...]:
        """The chosen probes, in the order of the table."""
        return tuple(name for name in PROBES if name in self.probes or "all" in self.probes)


@dataclass(frozen=True)
class Representing(Options):
    """From a video's clips to its representation (section 5 of the paper)."""

    section = "representing"

    parts: tuple[str, ...] = option(
        ("x", "c"),
        "Parts of a clip's representation: x (backbone feature), c (set token), h (the clip's own token), h_mean (mean "
        "of the set's clip tokens).",
        check=each(one_of(*PARTS)),
    )
    unit_norm: bool = option(False, "Scale each part to unit norm.")
    token_weight: float = option(
        1.0, "Factor of the parts c, h and h_mean, relative to x; without effect on trained probes.", check=above(0)
    )
    ensemble: int = option(
        0, "Clips per set when a video's clips are divided into several sets; 0: all in one set.", check=at_least(0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.token_parts:
            raise UserError(f"parts: expected at least one of {', '.join(PARTS[1:])}, found {','.join(self.parts)}")

    @property
    def has_feature(self) -> bool:
        """Whether the backbone's feature is a part."""
        return "x" in self.parts

    @property
    def token_parts(self) -> tuple[str, ...]:
        """The parts that the aggregator computes, in the order in which they are concatenated."""
        return tuple(name for name in PARTS[1:] if name in self.parts)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(StageConfig):
    """The options of `probe`."""

    probing: Probing = Probing()
    representing: Representing = Representing()
    splits: Splits = Splits()
    ingest: Ingest = Ingest()
    tracking: Tracking = Tracking()
