"""Every option of every stage, once: its type, default, unit and check.

Each stage's options are one frozen dataclass, and each option one `option(...)` field. The command
line, the jobs, the sweeps and the saved files are all generated from these fields, so that no default
and no limit is written twice.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scale_ray.errors import UserError
from scale_ray.options import Check, Options, above, at_least, each, one_of, option, share

_WORKERS = re.compile(r"(\d+)(?:\.\.(\d+))?")
_IN_0_1 = Check("in (0, 1]", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class CorpusOptions(Options):
    """Where the videos come from, and what is known of them."""

    section = "corpus"

    layout: str = option(
        "auto",
        "How the folder is laid out; auto tells official layouts by their lists, and else takes a class a subfolder.",
        check=one_of("auto", "folder", "ucf101", "hmdb51", "kinetics", "ssv2"),
        main=True,
    )
    annotations: str | None = option(
        None, "Folder or file with the official lists; inside or beside the videos if not given."
    )
    id_prefix: str | None = option(
        None,
        "Put before every video's id, as PREFIX/ID, so that two corpora fit in one store.",
        check=Check("without / at its ends, and not empty", lambda prefix: "" != prefix == prefix.strip("/")),
    )
    test_share: float = option(
        0.2, "Share of a corpus without splits that becomes its test split.", unit="of 1", check=share(with_one=False)
    )


@dataclass(frozen=True)
class Sampling(Options):
    """Which clips are cut from a video (section 3 of the paper: spatio-temporal crops)."""

    section = "sampling"

    frames: int = option(16, "Frames of one clip.", check=at_least(1))
    stride: int = option(4, "Distance of the frames of a clip.", unit="frames at --fps", check=at_least(1))
    fps: float = option(30.0, "Frame rate that the stride counts in.", unit="frames/s", check=above(0))
    clips: int = option(16, "Clips stored of one video in modes train and augmented.", check=at_least(2), main=True)
    scale_min_px: int = option(256, "Least short side before the random crop.", unit="px", check=at_least(8))
    scale_max_px: int = option(320, "Largest short side before the random crop.", unit="px", check=at_least(8))
    crop_px: int = option(224, "Side of the random crop.", unit="px", check=at_least(8))
    flip_probability: float = option(0.5, "How often a clip is mirrored.", check=share(with_one=True))
    area_min: float = option(0.2, "Least area of an augmented clip's box.", unit="of the frame", check=_IN_0_1)
    area_max: float = option(0.766, "Largest area of an augmented clip's box.", unit="of the frame", check=_IN_0_1)
    aspect_max: float = option(
        4 / 3, "Largest ratio of the sides of an augmented clip's box, either way.", check=at_least(1)
    )
    jitter_probability: float = option(0.8, "How often an augmented clip's colours change.", check=share(with_one=True))
    jitter: float = option(
        0.6, "Most that brightness, contrast and saturation change.", unit="of 1", check=share(with_one=True)
    )
    jitter_hue: float = option(
        0.15, "Most that the hue turns.", unit="of a turn", check=Check("in [0, 0.5]", lambda hue: 0 <= hue <= 0.5)
    )
    grey_probability: float = option(0.2, "How often an augmented clip is grey.", check=share(with_one=True))
    blur_probability: float = option(0.5, "How often an augmented clip is blurred.", check=share(with_one=True))
    blur_min_px: float = option(0.1, "Least sigma of the blur.", unit="px of the frame", check=above(0))
    blur_max_px: float = option(2.0, "Largest sigma of the blur.", unit="px of the frame", check=above(0))
    eval_times: int = option(5, "Starts, evenly spaced, of the clips of mode eval.", check=at_least(1))
    eval_crops: int = option(3, "Crops along the long side at each start, mode eval.", check=at_least(1))
    sampling_seed: int = option(0, "Seed of the random clips.", check=at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.crop_px <= self.scale_min_px <= self.scale_max_px:
            raise UserError(
                "crop_px, scale_min_px, scale_max_px: expected in rising order, "
                f"found {self.crop_px}, {self.scale_min_px}, {self.scale_max_px}"
            )
        for low, high in (("area_min", "area_max"), ("blur_min_px", "blur_max_px")):
            if getattr(self, low) > getattr(self, high):
                raise UserError(
                    f"{low}, {high}: expected in rising order, found {getattr(self, low):g}, {getattr(self, high):g}"
                )

    @property
    def span_s(self) -> float:
        """Seconds that one clip spans."""
        return self.frames * self.stride / self.fps

    def num_clips(self, mode: str) -> int:
        return self.eval_times * self.eval_crops if mode == "eval" else self.clips


@dataclass(frozen=True)
class BackboneOptions(Options):
    """The frozen encoder, and the pixels that it sees."""

    section = "backbone"

    backbone: str = option(
        "r3d_18",
        "A torchvision model, slow_r50, svt, hf:ID_OR_FOLDER or package.module:function; several by commas.",
        main=True,
    )
    weights: str = option(
        "default", "default (the published ones), none (seeded random) or a FILE; one for all or one each.", main=True
    )
    frame_pooling: str = option(
        "mean",
        "What an image model says of a clip's frames: their mean, or mean, standard deviation and mean absolute "
        "difference.",
        check=one_of("mean", "moments"),
        main=True,
    )
    input_px: int | None = option(
        None, "Side of the backbone's input; the model's own if not given.", unit="px", check=at_least(16), main=True
    )
    pixel_mean: tuple[float, ...] | None = option(
        None, "Mean of the pixels, one number or three; the model's own if not given.", unit="of 1"
    )
    pixel_std: tuple[float, ...] | None = option(None, "Standard deviation of the pixels, likewise.", unit="of 1")
    backbone_seed: int = option(0, "Seed of random weights.", check=at_least(0))
    precision: str = option(
        "float32",
        "What the backbone computes in; less than float32 pays on CUDA only.",
        check=one_of("float32", "float16", "bfloat16"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pixel_mean", "pixel_std"):
            value = getattr(self, name)
            if value is not None and len(value) not in (1, 3):
                raise UserError(f"{name}: expected one number or three, found {len(value)}")
        if self.pixel_std is not None and min(self.pixel_std) <= 0:
            raise UserError(f"pixel_std: expected values above 0, found {min(self.pixel_std):g}")

    def each(self) -> list[BackboneOptions]:
        """The options of every backbone that `backbone` names, in that order.

        Raises
        ------
        UserError
            Where `weights` gives neither one value nor one for each backbone, or where two of the
            backbones would share a folder.
        """
        names = [name.strip() for name in self.backbone.split(",")]
        weights = [value.strip() for value in self.weights.split(",")]
        if not all(names):
            raise UserError(f"backbone: expected names separated by single commas, found {self.backbone!r}")
        if len(weights) not in (1, len(names)):
            raise UserError(
                f"weights: expected one value for all or one for each of the {len(names)} backbones, "
                f"found {len(weights)}"
            )
        folders = [store_folder_name(name) for name in names]
        if len(set(folders)) < len(folders):
            twice = next(folder for folder in folders if folders.count(folder) > 1)
            raise UserError(f"backbone: expected backbones with folders of their own, found {twice!r} twice")
        if len(weights) == 1:
            weights *= len(names)
        return [
            dataclasses.replace(self, backbone=name, weights=value) for name, value in zip(names, weights, strict=True)
        ]


def store_folder_name(backbone_name: str) -> str:
    """The folder of a backbone's store beside those of others: `hf:a/b` is `hf-a-b`.

    Letters, digits, `.`, `_` and `-` alone, and never a name that climbs out or hides.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", backbone_name).strip("-.") or "backbone"


@dataclass(frozen=True)
class Extraction(Options):
    """How the corpus is streamed into the store."""

    section = "extraction"

    mode: str = option(
        "auto",
        "auto (by split), train, augmented or eval clips.",
        check=one_of("auto", "train", "augmented", "eval"),
        main=True,
    )
    shard_videos: int = option(64, "Most videos of one shard of the store.", check=at_least(1))
    block_mib: int = option(128, "Pixels that go to a backbone actor together.", unit="MiB", check=at_least(1))
    blocks_ahead: int = option(
        8, "Such blocks that may wait for each actor, beside two of each decoder; bounds the memory.", check=at_least(1)
    )
    decoders: int = option(0, "Decoding tasks at once; 0: from the cluster's size.", check=at_least(0), main=True)
    decode_timeout_s: float = option(300.0, "Longest time that one video may take to decode.", unit="s", check=above(0))
    decode_memory_gib: float = option(8.0, "Most memory that one decoder may map.", unit="GiB", check=at_least(1))
    actors: int = option(0, "Backbone actors; 0: from the cluster's size.", check=at_least(0), main=True)
    actor_gpus: float = option(
        0.0,
        "GPUs of one actor: a share, one or several; 0: one, or none without GPUs.",
        check=Check("0, in (0, 1] or a whole number", lambda gpus: 0 <= gpus <= 1 or gpus == int(gpus) > 0),
    )
    actor_cpus: int = option(0, "Threads of one actor without a GPU; 0: from the cluster's size.", check=at_least(0))
    batch_clips: int = option(16, "Clips that the backbone sees at once.", check=at_least(1))
    retry_failed: bool = option(False, "Try the videos of the failure ledger again.", main=True)
    max_failed_share: float = option(
        0.1, "A larger share of failed videos fails jobs, pipeline and demo.", check=share(with_one=True), main=True
    )


@dataclass(frozen=True)
class Inspection(Options):
    """How closely `scale-ray inspect` looks."""

    section = "inspection"

    inspect_headers: int = option(
        10_000, "Most files that are opened; of more, so many are drawn at random.", check=at_least(1), main=True
    )
    inspect_sample: int = option(
        12, "Videos that are decoded for the estimate; 0: no estimate.", check=at_least(0), main=True
    )
    inspect_seed: int = option(0, "Seed of what is drawn.", check=at_least(0))


@dataclass(frozen=True)
class Splits(Options):
    """Which of a data set's official splits counts."""

    section = "splits"

    split: str | None = option(
        None, "Name of one of several official splits; the first if not given. To probe, all: each, and their mean."
    )


@dataclass(frozen=True)
class Sets(Options):
    """The clip sets that the aggregator trains on: what the sweep searches."""

    section = "sets"

    set_size: int = option(
        8, "Clips of one set; a video gives two disjoint sets.", check=at_least(1), main=True, sweep=(4, 8)
    )
    mask_ratio: float = option(
        0.25, "Probability that a clip is masked.", check=share(with_one=False), main=True, sweep=(0.15, 0.25, 0.5)
    )
    masked_clips: int | None = option(
        None, "Clips of every set that are masked, always as many; --mask-ratio counts if not given.", check=at_least(0)
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
        "Width of the tokens; heads are 32 wide.",
        check=Check("a multiple of 32", lambda w: w > 0 and w % 32 == 0),
        main=True,
    )
    layers: int = option(2, "Transformer blocks.", check=at_least(1), main=True)
    mlp_ratio: float = option(2.0, "Width of a block's MLP over that of the tokens.", check=above(0))
    dropout: float = option(0.1, "Dropout on residuals and attention.", check=share(with_one=False))


@dataclass(frozen=True)
class ObjectiveOptions(Options):
    """The two losses and the heads that they need."""

    section = "objective"

    prediction_hidden: int = option(4096, "Hidden width of the prediction heads.", check=at_least(1))
    target_hidden: int = option(2048, "Hidden width of the target head.", check=at_least(1))
    contrast_width: int = option(128, "Width in which features are compared.", check=at_least(1))
    set_temperature: float = option(0.2, "Temperature of the set contrast.", check=above(0))
    clip_temperature: float = option(0.2, "Temperature of the masked clip loss.", check=above(0))
    set_weight: float = option(1.0, "Weight of the set loss.", check=at_least(0))
    clip_weight: float = option(1.0, "Weight of the masked clip loss.", check=at_least(0))
    clip_objective: str = option(
        "contrast",
        "Masked clips: told from others (contrast), or their backbone features regressed.",
        check=one_of("contrast", "cosine", "smooth_l1"),
    )
    candidates: str = option(
        "all",
        "What masked clips are told from: all clips, or the masked ones.",
        check=one_of("all", "masked"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set_weight + self.clip_weight <= 0:
            raise UserError("set_weight, clip_weight: expected one of them above 0, found both 0")


@dataclass(frozen=True)
class Training(Options):
    """Optimiser, schedule and length of the pretraining."""

    section = "training"

    pretrain_on: str = option(
        "train",
        "Videos of the training split, or all that have train clips; tables call the second transductive.",
        check=one_of("train", "all"),
    )
    epochs: int = option(200, "Passes over the videos.", check=at_least(1), main=True)
    batch: int = option(512, "Videos of one global batch, at most.", check=at_least(2), main=True)
    accumulate: int = option(
        1, "Parts that a batch is computed in, for less memory; the same loss and gradients.", check=at_least(1)
    )
    learning_rate: float = option(3e-4, "Peak learning rate of AdamW.", check=above(0), main=True)
    weight_decay: float = option(1e-4, "Weight decay, not on biases, norms and tokens.", check=at_least(0))
    warmup_share: float = option(0.05, "Share of the steps that warm up.", check=share(with_one=False))
    gradient_clip: float = option(0.0, "Largest norm of the gradient; 0: any.", check=at_least(0))
    ema_decay: float = option(
        0.0, "Decay of the moving average of the weights that is kept and probed; 0: none.", check=share(with_one=False)
    )
    arithmetic: str = option(
        "auto",
        "float32 or bfloat16; auto: bfloat16 on GPUs.",
        check=one_of("auto", "float32", "bfloat16"),
    )
    compile: bool = option(False, "Compile the aggregator and the heads; minutes at the start, for GPUs.")
    seed: int = option(0, "Seed of weights, order, sets and masks.", check=at_least(0), main=True)
    held_out_share: float = option(
        0.0,
        "Share of the training videos held out, by group, for a validation loss.",
        check=share(with_one=False),
        main=True,
    )
    monitor_epochs: int = option(
        10, "Epochs from one validation, by loss and k-NN, to the next; 0: never.", check=at_least(0)
    )
    patience: int = option(
        0,
        "Validations without gain before training stops, with the best weights; 0: any.",
        check=at_least(0),
    )
    workers: str = option(
        "auto",
        "Ray Train workers: N or MIN..MAX; auto: a GPU each, or up to 2 on CPUs.",
        check=Check("auto, N or MIN..MAX", lambda text: text == "auto" or bool(_WORKERS.fullmatch(text))),
        main=True,
    )
    checkpoint_epochs: int = option(10, "Epochs from one checkpoint to the next; 0: by steps alone.", check=at_least(0))
    checkpoint_steps: int = option(0, "Steps from one checkpoint to the next; 0: by epochs alone.", check=at_least(0))
    keep_checkpoints: int = option(
        2, "Checkpoints kept: the newest, those of least validation loss.", check=at_least(1)
    )
    max_restarts: int = option(2, "Restarts from the newest checkpoint after a worker died.", check=at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.num_workers or (1, 1)
        if not 1 <= low <= high:
            raise UserError(f"workers: expected at least 1, and MIN..MAX in rising order, found {self.workers}")
        if self.patience and not (self.held_out_share and self.monitor_epochs):
            raise UserError("patience: expected a --held-out-share and --monitor-epochs to judge by, found none")

    @property
    def num_workers(self) -> tuple[int, int] | None:
        """Least and largest number of workers; None where the cluster decides."""
        found = _WORKERS.fullmatch(self.workers)
        return None if found is None else (int(found[1]), int(found[2] or found[1]))


@dataclass(frozen=True)
class Ingest(Options):
    """Where the stored features are while the aggregator trains on them."""

    section = "ingest"

    ingest: str = option(
        "auto",
        "Features held in the device's memory, mapped from local disk, or streamed; auto: the first that fits.",
        check=one_of("auto", "memory", "disk", "stream"),
    )
    cache: str | None = option(
        None, "Folder on local disk for mapped features; the system's temporary one if not given."
    )
    ingest_share: float = option(
        0.5, "Share of the free memory, or of the free disk, that features may take.", unit="of 1", check=_IN_0_1
    )
    window_mib: int = option(1024, "Streamed features that are shuffled together.", unit="MiB", check=at_least(1))


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
    probe_min_steps: int = option(1000, "Least steps of them: a small corpus gets more epochs.", check=at_least(1))
    probe_draws: int = option(32, "Draws of clip sets before they come round again.", check=at_least(1))
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


@dataclass(frozen=True)
class Embedding(Options):
    """What is written of the vectors."""

    section = "embedding"

    per_clip: bool = option(False, "Write the vectors of clips, too, in `clips/`.", main=True)


@dataclass(frozen=True)
class BackboneSource(Options):
    """Where an aggregator's backbone comes from: all else of it is known from the aggregator's folder."""

    section = "source"

    weights_at: str | None = option(
        None, "Where the backbone's weights are, if not where they were in `extract`: default or a FILE."
    )


@dataclass(frozen=True)
class Searching(Options):
    """The sweep."""

    section = "searching"

    validation_share: float = option(
        0.25,
        "Share of the training split, by group, that ranks the settings.",
        check=Check("in (0, 1)", lambda value: 0 < value < 1),
        main=True,
    )
    trials_at_once: int = option(0, "Trials at the same time; 0: one a CPU or GPU.", check=at_least(0), main=True)


@dataclass(frozen=True)
class Tracking(Options):
    """Where MLflow keeps its record."""

    section = "tracking"

    tracking_uri: str | None = option(None, "MLflow's tracking URI; RUNS/mlflow.db by default.", main=True)
    experiment: str = option("scale-ray", "MLflow experiment.")
    register: str | None = option(None, "Name under which the aggregator becomes a version of a model in MLflow.")


@dataclass(frozen=True)
class Cluster(Options):
    """The Ray cluster that the work runs on."""

    section = "cluster"

    address: str | None = option(None, "Address of a running Ray cluster; else a Ray of our own.", main=True)
    cpus: int = option(0, "CPUs of a Ray of our own; 0: all.", check=at_least(0), main=True)


SECTIONS: dict[str, type[Options]] = {
    section.section: section
    for section in (
        CorpusOptions,
        Sampling,
        BackboneOptions,
        Extraction,
        Inspection,
        Splits,
        Sets,
        AggregatorOptions,
        ObjectiveOptions,
        Training,
        Ingest,
        Probing,
        Representing,
        Embedding,
        BackboneSource,
        Searching,
        Tracking,
        Cluster,
    )
}


@dataclass(frozen=True)
class PretrainConfig:
    """All that decides what a pretraining run computes."""

    splits: Splits = Splits()
    sets: Sets = Sets()
    aggregator: AggregatorOptions = AggregatorOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    training: Training = Training()
    ingest: Ingest = Ingest()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {field.name: getattr(self, field.name).to_dict() for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> PretrainConfig:
        sections = {name: SECTIONS[name].from_dict(values.get(name, {})) for name in cls.__dataclass_fields__}
        return cls(**sections)  # type: ignore[arg-type]

    def with_values(self, values: Mapping[str, Any]) -> PretrainConfig:
        """A copy with values of dotted names put in, as `{"sets.mask_ratio": 0.5}`."""
        merged = self.to_dict()
        for dotted, value in values.items():
            section, _, name = dotted.partition(".")
            merged[section][name] = value
        return PretrainConfig.from_dict(merged)
