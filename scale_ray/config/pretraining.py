"""Options of the pretraining."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from scale_ray.config.option import Check, Options, above, at_least, each, fraction, one_of, option
from scale_ray.config.runtime import Cluster, Tracking
from scale_ray.config.stage import StageConfig
from scale_ray.errors import UserError

# Modes of the clips to pretrain on and to fit probes on; the last is the pool of both.
TRAINED_MODES = ("train", "augmented", "train+augmented")

_WORKERS = re.compile(r"(\d+)(?:\.\.(\d+))?")
_IN_0_1 = Check("in (0, 1]", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class Splits(Options):
    """Which of a data set's official splits is used."""

    section = "splits"

    split: str | None = option(
        None, "Name of an official split; the first by default. For probes, all: each split, and their mean."
    )


@dataclass(frozen=True)
class Sets(Options):
    """The clip sets that the aggregator trains on."""

    section = "sets"

    set_size: int = option(
        8,
        "Clips per set; each video gives two disjoint sets.",
        check=at_least(1),
        main=True,
        searched=True,
        tried=(4, 8),
    )
    mask_ratio: float = option(
        0.25,
        "Probability that a clip is masked.",
        check=fraction(with_one=False),
        main=True,
        searched=True,
        tried=(0.15, 0.25, 0.5),
    )
    masked_clips: int | None = option(
        None, "Exact number of masked clips per set, instead of --mask-ratio.", check=at_least(0), searched=True
    )
    position_dropout: float = option(
        0.0,
        "Probability that a set is shown without the positions of its clips.",
        check=fraction(with_one=False),
        searched=True,
    )
    time_jitter: float = option(
        0.0,
        "The times of a set are multiplied by a random number in [1 - J, 1 + J].",
        check=fraction(with_one=False),
        searched=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked_clips is not None and self.masked_clips >= self.set_size:
            raise UserError(
                f"masked_clips: expected fewer than the {self.set_size} clips of a set, found {self.masked_clips}"
            )


@dataclass(frozen=True)
class AggregatorOptions(Options):
    """The set transformer (section 3 of the paper)."""

    section = "aggregator"

    width: int = option(
        256,
        "Width of the tokens; an attention head is 32 wide.",
        check=Check("a multiple of 32", lambda w: w > 0 and w % 32 == 0),
        main=True,
        searched=True,
    )
    layers: int = option(2, "Transformer blocks.", check=at_least(1), main=True, searched=True)
    mlp_ratio: float = option(2.0, "Width of a block's MLP relative to the tokens.", check=above(0), searched=True)
    dropout: float = option(0.1, "Dropout on residuals and attention.", check=fraction(with_one=False), searched=True)
    position_scale: str = option(
        "video",
        "Positions run from 0 to 1 over all clips of a video, or over the clips of a set.",
        check=one_of("video", "set"),
        searched=True,
    )


@dataclass(frozen=True)
class ObjectiveOptions(Options):
    """The two losses and their heads."""

    section = "objective"

    prediction_hidden: int = option(4096, "Hidden width of the prediction heads.", check=at_least(1), searched=True)
    target_hidden: int = option(2048, "Hidden width of the target head.", check=at_least(1), searched=True)
    contrast_width: int = option(128, "Width in which projections are compared.", check=at_least(1), searched=True)
    set_temperature: float = option(0.2, "Temperature of the set contrast.", check=above(0), searched=True)
    clip_temperature: float = option(0.2, "Temperature of the masked clip loss.", check=above(0), searched=True)
    set_weight: float = option(1.0, "Weight of the set loss.", check=at_least(0), searched=True)
    clip_weight: float = option(1.0, "Weight of the masked clip loss.", check=at_least(0), searched=True)
    clip_objective: str = option(
        "contrast",
        "Loss of the masked clips: contrast with other clips, or regression of their features by cosine or smooth_l1.",
        check=one_of("contrast", "cosine", "smooth_l1"),
        searched=True,
    )
    candidates: str = option(
        "all",
        "Negatives of the masked clips: all clips of the batch, or only the masked ones.",
        check=one_of("all", "masked"),
        searched=True,
    )
    negatives: str = option(
        "all",
        "Negatives of a video's sets and clips: all videos, as in the paper, or those of other groups.",
        check=one_of("all", "other_groups"),
        searched=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set_weight + self.clip_weight <= 0:
            raise UserError("set_weight, clip_weight: expected one of them above 0, found both 0")


@dataclass(frozen=True)
class Training(Options):
    """Optimiser, schedule and duration of the pretraining."""

    section = "training"
    # Options that say how a training runs, not what it computes: a run may continue with others.
    HOW: ClassVar[tuple[str, ...]] = (
        "workers",
        "checkpoint_epochs",
        "checkpoint_steps",
        "keep_checkpoints",
        "max_restarts",
        "resize_s",
        "compile",
    )

    pretrain_on: str = option(
        "train",
        "Videos to train on: the training split, or all videos with clips of --pretrain-mode (transductive).",
        check=one_of("train", "all"),
    )
    pretrain_mode: str = option(
        "train",
        "Clips to train on: of mode train, of mode augmented, or of both as one pool per video.",
        check=one_of(*TRAINED_MODES),
    )
    store_weights: tuple[float, ...] = option(
        (),
        "For several stores: how often an epoch uses the videos of each; all of those with the largest weight, of the "
        "others a fraction.",
        check=each(above(0)),
    )
    epochs: int = option(200, "Passes over the videos.", check=at_least(1), main=True, searched=True)
    batch: int = option(512, "Videos per global batch.", check=at_least(2), main=True, searched=True)
    accumulate: int = option(
        1, "Parts in which a batch is computed, to save memory; loss and gradients stay the same.", check=at_least(1)
    )
    learning_rate: float = option(3e-4, "Peak learning rate of AdamW.", check=above(0), main=True, searched=True)
    weight_decay: float = option(
        1e-4, "Weight decay; not applied to biases, norms and tokens.", check=at_least(0), searched=True
    )
    warmup_share: float = option(
        0.05, "Fraction of the steps with a rising learning rate.", check=fraction(with_one=False), searched=True
    )
    gradient_clip: float = option(0.0, "Maximum norm of the gradient; 0: no limit.", check=at_least(0), searched=True)
    ema_decay: float = option(
        0.0,
        "Decay of a moving average of the weights, which is then saved and probed; 0: none.",
        check=fraction(with_one=False),
        searched=True,
    )
    train_precision: str = option(
        "auto",
        "Precision of the training: float32 or bfloat16; auto: bfloat16 on GPUs.",
        check=one_of("auto", "float32", "bfloat16"),
    )
    compile: bool = option(False, "Compile the aggregator and the heads, for GPUs; takes minutes at the start.")
    seed: int = option(0, "Seed of weights, order, sets and masks.", check=at_least(0), main=True)
    held_out_share: float = option(
        0.0,
        "Fraction of the training videos held out for a validation loss.",
        check=fraction(with_one=False),
        main=True,
    )
    monitor_epochs: int = option(10, "Epochs between validations by loss and k-NN; 0: never.", check=at_least(0))
    patience: int = option(
        0,
        "Stop after this many validations without improvement, with the best weights; 0: never.",
        check=at_least(0),
    )
    workers: str = option(
        "auto",
        "Ray Train workers: N or MIN..MAX; auto: one per GPU, or up to 2 on CPUs.",
        check=Check("auto, N or MIN..MAX", lambda text: text == "auto" or bool(_WORKERS.fullmatch(text))),
        main=True,
    )
    checkpoint_epochs: int = option(10, "Epochs between checkpoints; 0: only by steps.", check=at_least(0))
    checkpoint_steps: int = option(0, "Steps between checkpoints; 0: only by epochs.", check=at_least(0))
    keep_checkpoints: int = option(
        2, "Checkpoints to keep: the newest, or those with the lowest validation loss.", check=at_least(1)
    )
    max_restarts: int = option(
        5, "Restarts from the newest checkpoint after a worker or a node has died.", check=at_least(0)
    )
    resize_s: float = option(
        60.0, "How often a run with MIN..MAX workers looks for room for more of them.", unit="s", check=above(0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.num_workers or (1, 1)
        if not 1 <= low <= high:
            raise UserError(f"workers: expected at least 1, and MIN..MAX in ascending order, found {self.workers}")
        if self.patience and not (self.held_out_share and self.monitor_epochs):
            raise UserError("patience: expected --held-out-share and --monitor-epochs above 0, found 0")

    @property
    def num_workers(self) -> tuple[int, int] | None:
        """Minimum and maximum number of workers; None if the cluster decides."""
        match = _WORKERS.fullmatch(self.workers)
        return None if match is None else (int(match[1]), int(match[2] or match[1]))


@dataclass(frozen=True)
class Ingest(Options):
    """Where the stored features are kept while the aggregator trains on them."""

    section = "ingest"

    ingest: str = option(
        "auto",
        "Keep features in the device's memory, map them from local disk, or stream them; auto: the first that fits.",
        check=one_of("auto", "memory", "disk", "stream"),
    )
    cache: str | None = option(
        None,
        "Folder on local disk for mapped features; a private one in the system's temporary folder by default.",
        is_location=True,
    )
    ingest_share: float = option(
        0.5, "Fraction of the free memory, or of the free disk, that features may take.", check=_IN_0_1
    )
    window_mib: int = option(1024, "Streamed features that are shuffled together.", unit="MiB", check=at_least(1))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """The options of `pretrain`: what a run computes, where it runs and who keeps the record."""

    sets: Sets = Sets()
    aggregator: AggregatorOptions = AggregatorOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    training: Training = Training()
    ingest: Ingest = Ingest()
    splits: Splits = Splits()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()
