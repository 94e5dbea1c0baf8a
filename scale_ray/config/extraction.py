"""Options of the way from videos to features."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from scale_ray.config.labels import SELECTOR
from scale_ray.config.option import Check, Options, above, at_least, fraction, one_of, option
from scale_ray.config.runtime import Cluster
from scale_ray.config.stage import StageConfig
from scale_ray.errors import UserError

# The automatic size of shards: the smallest power of two within these limits that gives at most so many shards. Each
# file costs time whenever a store is opened; a large shard keeps more in memory, and a crash loses more of it.
_MIN_SHARD_VIDEOS, _MAX_SHARD_VIDEOS = 64, 1024
_MAX_SHARDS = 4096

_IN_0_1 = Check("in (0, 1]", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class CorpusOptions(Options):
    """Where the videos come from, and what is known about them."""

    section = "corpus"

    layout: str = option(
        "auto",
        "Layout of the folder; auto recognises official lists, otherwise one subfolder per class.",
        check=one_of("auto", "folder", "ucf101", "hmdb51", "kinetics", "ssv2"),
        main=True,
    )
    annotations: str | None = option(
        None,
        "Folder or file with the official lists; by default they are looked for inside and beside the videos.",
        is_location=True,
    )
    id_prefix: str | None = option(
        None,
        "Prefix of every video id, as PREFIX/ID, so that two corpora fit in one store.",
        check=Check("that is not empty and has no / at its ends", lambda prefix: "" != prefix == prefix.strip("/")),
    )
    test_share: float = option(
        0.2,
        "Share of a corpus without splits that becomes its test split.",
        unit="of 1",
        check=fraction(with_one=False),
    )


@dataclass(frozen=True)
class Sampling(Options):
    """Which clips are cut from a video (section 3 of the paper: spatio-temporal crops)."""

    section = "sampling"

    frames: int = option(16, "Frames per clip.", check=at_least(1))
    stride: int = option(4, "Distance between the frames of a clip.", unit="frames at --fps", check=at_least(1))
    fps: float = option(30.0, "Frame rate that the stride refers to.", unit="frames/s", check=above(0))
    clips: int = option(16, "Clips per video in modes train and augmented.", check=at_least(2), main=True)
    scale_min_px: int = option(256, "Minimum short side before the random crop.", unit="px", check=at_least(8))
    scale_max_px: int = option(320, "Maximum short side before the random crop.", unit="px", check=at_least(8))
    crop_px: int = option(224, "Side of the random crop.", unit="px", check=at_least(8))
    flip_probability: float = option(0.5, "Probability that a clip is mirrored.", check=fraction(with_one=True))
    area_min: float = option(0.2, "Minimum area of an augmented clip's box.", unit="of the frame", check=_IN_0_1)
    area_max: float = option(0.766, "Maximum area of an augmented clip's box.", unit="of the frame", check=_IN_0_1)
    aspect_max: float = option(
        4 / 3, "Maximum aspect ratio of an augmented clip's box, wide or high.", check=at_least(1)
    )
    jitter_probability: float = option(
        0.8, "Probability that an augmented clip's colours are changed.", check=fraction(with_one=True)
    )
    jitter: float = option(
        0.6, "Maximum change of brightness, contrast and saturation, as a fraction.", check=fraction(with_one=True)
    )
    jitter_hue: float = option(
        0.15, "Maximum change of the hue.", unit="of a turn", check=Check("in [0, 0.5]", lambda hue: 0 <= hue <= 0.5)
    )
    grey_probability: float = option(0.2, "Probability that an augmented clip is grey.", check=fraction(with_one=True))
    blur_probability: float = option(
        0.5, "Probability that an augmented clip is blurred.", check=fraction(with_one=True)
    )
    blur_min_px: float = option(0.1, "Minimum sigma of the blur.", unit="px of --blur-short-px", check=above(0))
    blur_max_px: float = option(2.0, "Maximum sigma of the blur.", unit="px of --blur-short-px", check=above(0))
    blur_short_px: int = option(
        256, "Short side of the frame in whose pixels the blur is given.", unit="px", check=at_least(8)
    )
    eval_times: int = option(5, "Evenly spaced start times of the clips in mode eval.", check=at_least(1))
    eval_crops: int = option(3, "Crops along the long side at each start time in mode eval.", check=at_least(1))
    sampling_seed: int = option(0, "Seed of the random clips.", check=at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.crop_px <= self.scale_min_px <= self.scale_max_px:
            raise UserError(
                "crop_px, scale_min_px, scale_max_px: expected in ascending order, "
                f"found {self.crop_px}, {self.scale_min_px}, {self.scale_max_px}"
            )
        for low, high in (("area_min", "area_max"), ("blur_min_px", "blur_max_px")):
            if getattr(self, low) > getattr(self, high):
                raise UserError(
                    f"{low}, {high}: expected in ascending order, found {getattr(self, low):g}, {getattr(self, high):g}"
                )

    @property
    def eval_scale(self) -> float:
        """Input size in mode eval over that of the other modes at which objects are as large as in mode train.

        As large as there at the smallest scale of the frame: a crop of eval is the whole short side.
        """
        return self.scale_min_px / self.crop_px

    @property
    def span_s(self) -> float:
        """Duration of one clip in seconds."""
        return self.frames * self.stride / self.fps

    def num_clips(self, mode: str) -> int:
        """Clips per video in a mode."""
        return self.eval_times * self.eval_crops if mode == "eval" else self.clips


@dataclass(frozen=True)
class BackboneOptions(Options):
    """The frozen encoder, and the pixels that it receives."""

    section = "backbone"

    backbone: str = option(
        "r3d_18",
        "A torchvision model, slow_r50, svt, i3d, hf:ID_OR_FOLDER or package.module:function; several are separated "
        "by commas.",
        main=True,
    )
    weights: str = option(
        "default",
        "default (published weights), none (seeded random) or a FILE; one value, or one per backbone.",
        main=True,
        is_location=True,
    )
    frame_pooling: str = option(
        "mean",
        "Pooling of an image model's frames: mean, or moments (mean, standard deviation, mean absolute difference).",
        check=one_of("mean", "moments"),
        main=True,
    )
    input_px: int | None = option(
        None,
        "Width and height of the backbone's input; the model's own by default.",
        unit="px",
        check=at_least(16),
        main=True,
    )
    eval_input_px: int | None = option(
        None,
        "Width and height of the input in mode eval; by default 8/7 of --input-px where trained weights take any size.",
        unit="px",
        check=at_least(16),
    )
    pixel_mean: tuple[float, ...] | None = option(
        None, "Mean of the pixels in [0, 1], one number or three; the model's own by default."
    )
    pixel_std: tuple[float, ...] | None = option(
        None, "Standard deviation of the pixels in [0, 1], one number or three; the model's own by default."
    )
    backbone_seed: int = option(0, "Seed of random weights.", check=at_least(0))
    precision: str = option(
        "float32",
        "Precision of the backbone; less than float32 is faster on CUDA only.",
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
            If `weights` has neither one value nor one for each backbone, or if two backbones would share a
            folder.
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
            raise UserError(f"backbone: expected backbones with different folders, found {twice!r} twice")
        if len(weights) == 1:
            weights *= len(names)
        return [
            dataclasses.replace(self, backbone=name, weights=value) for name, value in zip(names, weights, strict=True)
        ]


def store_folder_name(backbone_name: str) -> str:
    """The folder name of a backbone's store among several: `hf:a/b` becomes `hf-a-b`.

    Only letters, digits, `.`, `_` and `-`; never a hidden name or one that leads out of the folder.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", backbone_name).strip("-.") or "backbone"


@dataclass(frozen=True)
class Part:
    """One of `count` parts of a corpus, by its `number` from 1; as text `3/16`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part | None:
        """The part that a text names; None if it names none."""
        match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
        part = cls(*map(int, match.groups())) if match else None
        return part if part is not None and part.number <= part.count else None

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Extraction(Options):
    """How the corpus is streamed into the store."""

    section = "extraction"

    mode: str = option(
        "auto",
        "Clips to extract: train, augmented or eval; auto decides by the split.",
        check=one_of("auto", "train", "augmented", "eval"),
        main=True,
    )
    shard_videos: int = option(
        0,
        "Maximum number of videos per shard of the store; 0: 64, and up to 1024 in a corpus of over 262,144 videos.",
        check=at_least(0),
    )
    part: str | None = option(
        None,
        "Part of the corpus to extract, as I/N: N commands, each with its own part, fill one store at once.",
        check=Check("I/N with 1 <= I <= N, such as 3/16", lambda text: Part.parse(text) is not None),
    )
    block_mib: int = option(128, "Size of a block of pixels for a backbone actor.", unit="MiB", check=at_least(1))
    blocks_ahead: int = option(
        8, "Blocks that may wait for each actor, besides two per decoder; limits the memory.", check=at_least(1)
    )
    decoders: int = option(0, "Concurrent decoding tasks; 0: from the cluster's size.", check=at_least(0), main=True)
    decode_timeout_s: float = option(300.0, "Maximum time to decode one video.", unit="s", check=above(0))
    decode_memory_gib: float = option(8.0, "Maximum memory that one decoder may map.", unit="GiB", check=at_least(1))
    decoder_labels: str | None = option(
        None, "Ray labels of the nodes for decoding, as KEY=VALUE,...; by default all nodes.", check=SELECTOR
    )
    actors: int = option(0, "Backbone actors; 0: from the cluster's size.", check=at_least(0), main=True)
    actor_gpus: float = option(
        0.0,
        "GPUs per actor: a fraction, one or several; 0: one, or none without GPUs.",
        check=Check("0, in (0, 1] or a whole number", lambda gpus: 0 <= gpus <= 1 or gpus == int(gpus) > 0),
    )
    actor_cpus: int = option(0, "Threads per actor without a GPU; 0: from the cluster's size.", check=at_least(0))
    actor_labels: str | None = option(
        None, "Ray labels of the nodes for backbone actors, as KEY=VALUE,...; by default all nodes.", check=SELECTOR
    )
    batch_clips: int = option(16, "Clips per batch of the backbone.", check=at_least(1))
    retry_failed: bool = option(False, "Retry the videos in the failure ledger.", main=True)
    re_extract_changed: bool = option(False, "Extract videos again whose file was replaced.", main=True)
    max_failed_share: float = option(
        0.1,
        "Fraction of failed videos above which jobs, pipeline and demo fail.",
        check=fraction(with_one=True),
        main=True,
    )

    def videos_per_shard(self, num_videos: int) -> int:
        """The maximum number of videos per shard in a corpus of `num_videos`.

        It depends on the size of the whole corpus: neither on the part nor on what is stored already, so that a
        repeated run cuts the same shards.
        """
        if self.shard_videos:
            return self.shard_videos
        size = _MIN_SHARD_VIDEOS
        while size < _MAX_SHARD_VIDEOS and num_videos > size * _MAX_SHARDS:
            size *= 2
        return size

    @property
    def corpus_part(self) -> Part | None:
        """The part of the corpus to extract; None for the whole corpus."""
        return None if self.part is None else Part.parse(self.part)

    def check_whole(self, what: str) -> None:
        """Raise a UserError if only a part of the corpus is asked for: `what` needs the whole one."""
        if self.part is not None:
            raise UserError(f"part: expected none for {what}, which is of the whole corpus, found {self.part}")


@dataclass(frozen=True)
class Inspection(Options):
    """How many files `scale-ray inspect` opens and decodes."""

    section = "inspection"

    inspect_headers: int = option(
        10_000, "Maximum number of files to open; of more files a random sample.", check=at_least(1), main=True
    )
    inspect_sample: int = option(12, "Videos to decode for the estimate; 0: no estimate.", check=at_least(0), main=True)
    inspect_seed: int = option(0, "Seed of the random samples.", check=at_least(0))


@dataclass(frozen=True, kw_only=True)
class InspectConfig(StageConfig):
    """The options of `inspect`."""

    corpus: CorpusOptions = CorpusOptions()
    sampling: Sampling = Sampling()
    backbone: BackboneOptions = BackboneOptions()
    extraction: Extraction = Extraction()
    inspection: Inspection = Inspection()


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(StageConfig):
    """The options of `extract`."""

    corpus: CorpusOptions = CorpusOptions()
    sampling: Sampling = Sampling()
    backbone: BackboneOptions = BackboneOptions()
    extraction: Extraction = Extraction()
    cluster: Cluster = Cluster()
