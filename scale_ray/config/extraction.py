"""Options of everything from the videos to their features."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from scale_ray.config.option import Check, Options, above, at_least, fraction, one_of, option
from scale_ray.config.runtime import Cluster
from scale_ray.config.stage import StageConfig
from scale_ray.errors import UserError

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
        0.2,
        "Share of a corpus without splits that becomes its test split.",
        unit="of 1",
        check=fraction(with_one=False),
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
    flip_probability: float = option(0.5, "How often a clip is mirrored.", check=fraction(with_one=True))
    area_min: float = option(0.2, "Least area of an augmented clip's box.", unit="of the frame", check=_IN_0_1)
    area_max: float = option(0.766, "Largest area of an augmented clip's box.", unit="of the frame", check=_IN_0_1)
    aspect_max: float = option(
        4 / 3, "Largest ratio of the sides of an augmented clip's box, either way.", check=at_least(1)
    )
    jitter_probability: float = option(
        0.8, "How often an augmented clip's colours change.", check=fraction(with_one=True)
    )
    jitter: float = option(
        0.6, "Most that brightness, contrast and saturation change.", unit="of 1", check=fraction(with_one=True)
    )
    jitter_hue: float = option(
        0.15, "Most that the hue turns.", unit="of a turn", check=Check("in [0, 0.5]", lambda hue: 0 <= hue <= 0.5)
    )
    grey_probability: float = option(0.2, "How often an augmented clip is grey.", check=fraction(with_one=True))
    blur_probability: float = option(0.5, "How often an augmented clip is blurred.", check=fraction(with_one=True))
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
        0.1, "A larger share of failed videos fails jobs, pipeline and demo.", check=fraction(with_one=True), main=True
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
