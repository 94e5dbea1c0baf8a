"""Backbone, aggregator and sampling as one model, from video files to vectors; MLflow loads and serves it.

The folder of an aggregator names its backbone and its sampling. A saved model also holds the weights of the backbone,
as safetensors, so that loading executes no code from it:

    aggregator/           config.json and model.safetensors
    backbone.safetensors
    model.json            a hash of the backbone's tensors, and how the clips of a video are dealt into sets
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scale_ray.aggregator import (
    Aggregator,
    check_origin,
    clip_representations,
    normalised_positions,
    tokens_of_clips,
)
from scale_ray.backbones import Backbone, is_custom, load_backbone, load_strictly, read_weights, weights_hash
from scale_ray.config import BackboneOptions, Extraction, Representing, Sampling
from scale_ray.decoding import Decoder, Request, SharedPixels, video_bytes
from scale_ray.errors import UserError, VideoError
from scale_ray.files.locations import absolute, atomic_write, is_below, join
from scale_ray.files.small_files import check_types, read_json

# Folders and prefixes of URIs, separated by commas, below which a served model reads videos.
SERVED_VARIABLE = "SCALE_RAY_SERVED_VIDEOS"
# With the value 1, a served model runs the custom backbone that its files name.
TRUST_VARIABLE = "SCALE_RAY_TRUST_CUSTOM_BACKBONE"
_CLIPS_AT_ONCE = 16
_BACKBONE_FILE = "backbone.safetensors"


@dataclass(frozen=True)
class Embedded:
    """The vector of one video, float32 (d,), and those of its clips, float32 (N, d); or the error."""

    path: str
    vector: np.ndarray | None
    clips: np.ndarray | None = None
    error: str | None = None


@torch.inference_mode()
def clip_vectors(
    aggregator: Aggregator, features: np.ndarray, positions: np.ndarray, representing: Representing
) -> np.ndarray:
    """The vector of every clip, float32 (videos, N, d): `[x, c]` of width D + E, unless `representing` has other parts.

    `features` (videos, N, D) of any float type are rounded to float16, so that stored and fresh features give the same
    vectors; `positions` (videos, N, 7) are in pixels and seconds.
    """
    rounded = torch.from_numpy(np.ascontiguousarray(features, np.float16))
    normalised = normalised_positions(torch.from_numpy(np.array(positions, np.float32)))
    tokens = tokens_of_clips(aggregator, rounded, normalised, representing)
    return clip_representations(rounded, tokens, representing).numpy()


def sampling_of(origin: Mapping[str, Any]) -> Sampling:
    """The sampling of the features that an aggregator was trained on, from its `origin`."""
    check_origin(origin)
    merged = dict(itertools.chain.from_iterable(options.items() for options in origin["sampling"].values()))
    return Sampling.from_dict({**merged, "sampling_seed": origin["sampling_seed"]})


def backbone_of(
    origin: Mapping[str, Any], weights_at: str | None = None, *, trust_custom_backbone: bool = False
) -> Backbone:
    """Load the backbone of the features that an aggregator was trained on, from the aggregator's `origin`.

    The weights are loaded from `weights_at`, by default from where they were at the time of extraction. A backbone
    `package.module:function` is code: it runs only with `trust_custom_backbone`, because a file names it.

    Raises
    ------
    UserError
        If the features are those of two backbones, the location of the weights is not recorded, the backbone cannot be
        loaded or is not trusted, or its weights are not those of the features.
    """
    if "joined" in origin:
        raise UserError(
            f"checkpoint: expected an aggregator of one backbone, found one of {origin['backbone']}: extract the "
            "features of both, join them, and give --store instead of videos"
        )
    if "made_with" not in origin and weights_at is None:
        raise UserError(
            "weights_at: expected --weights-at default or FILE, since the aggregator does not record where the "
            "weights of its backbone are, found none"
        )
    options = _recorded_options(origin, trust_custom_backbone=trust_custom_backbone)
    if weights_at is not None:
        options = BackboneOptions.from_dict({**options.to_dict(), "weights": weights_at})
    backbone = load_backbone(options, sampling_of(origin).frames)
    if backbone.weights_id != origin["weights"]:
        raise UserError(
            f"weights_at: expected the weights {origin['weights']} of {origin['backbone']}, found "
            f"{backbone.weights_id} in {options.weights!r}; give another --weights-at"
        )
    return backbone


def backbone_note(origin: Mapping[str, Any]) -> str | None:
    """What loading the backbone of an aggregator may download or run, for the user to see; None for built-in ones."""
    name = str((origin.get("made_with") or origin).get("backbone", ""))
    if is_custom(name):
        return f"backbone: runs {name}, which the aggregator's file names"
    return f"backbone: loads {name}, which the aggregator's file names" if name.startswith("hf:") else None


def _recorded_options(origin: Mapping[str, Any], *, trust_custom_backbone: bool) -> BackboneOptions:
    """The options of the backbone that an aggregator's file names.

    Raises
    ------
    UserError
        If it names a user's own function, and that is not trusted.
    """
    recorded = origin.get("made_with") or _options_from_fingerprint(origin)
    # The size that the features were made with, which earlier versions did not record: it was the input's.
    options = BackboneOptions.from_dict({**recorded, "eval_input_px": origin.get("eval_input_px")})
    if is_custom(options.backbone) and not trust_custom_backbone:
        raise UserError(
            f"backbone: expected --trust-custom-backbone (or {TRUST_VARIABLE}=1 for a served model), since the "
            f"aggregator's file names the function {options.backbone}, which would run; found none"
        )
    return options


def _options_from_fingerprint(origin: Mapping[str, Any]) -> dict[str, Any]:
    names = ("backbone", "input_px", "pixel_mean", "pixel_std", "precision", "frame_pooling")
    check_types(origin, "checkpoint", "an aggregator that records its backbone,", dict.fromkeys(names, object))
    options = {name: origin[name] for name in names}
    return {**options, "frame_pooling": "mean" if options["frame_pooling"] == "none" else options["frame_pooling"]}


class VideoModel:
    """Computes the vectors of video files, in this process, from the clips of mode `eval`.

    An unusable file gives a result with an error instead of a vector. Decoding runs in a supervised child process.
    `served_folders` are the folders and prefixes of URIs below which `predict` reads videos.
    """

    def __init__(self, backbone: Backbone, aggregator: Aggregator, representing: Representing) -> None:
        self.backbone, self.aggregator, self.representing = backbone, aggregator, representing
        self.sampling = sampling_of(aggregator.origin)
        self.served_folders: tuple[str, ...] = ()

    @classmethod
    def from_aggregator(
        cls,
        aggregator: Aggregator,
        representing: Representing | None = None,
        weights_at: str | None = None,
        *,
        trust_custom_backbone: bool = False,
    ) -> VideoModel:
        """The model of an aggregator and the backbone that it records (`backbone_of`)."""
        if "backbone" not in aggregator.origin:
            raise UserError("checkpoint: expected an aggregator that records its backbone, found one that does not")
        backbone = backbone_of(aggregator.origin, weights_at, trust_custom_backbone=trust_custom_backbone)
        return cls(backbone, aggregator, representing or Representing())

    def embed(self, paths: Iterable[str]) -> list[Embedded]:
        """One result per video, in the order of `paths` (paths or URIs)."""
        limits, size_px = Extraction(), self.backbone.input_px_of("eval")
        pixels = SharedPixels(video_bytes("eval", self.sampling, [size_px]))
        shape = (self.sampling.num_clips("eval"), self.sampling.frames, size_px, size_px, 3)
        embedded = []
        with Decoder(timeout_s=limits.decode_timeout_s, memory_gib=limits.decode_memory_gib) as decoder:
            for path in paths:
                try:
                    decoded = decoder.decode(Request(path, path, "eval", self.sampling, (size_px,), (0,)), pixels)
                except VideoError as error:
                    embedded.append(Embedded(path, None, error=f"{error.stage}: {error.reason}"))
                    continue
                clips = torch.from_numpy(np.frombuffer(pixels.memory, np.uint8).reshape(shape).copy())
                features = torch.cat([self.backbone(part) for part in clips.split(_CLIPS_AT_ONCE)]).numpy()
                if not np.isfinite(features.astype(np.float16)).all():
                    embedded.append(Embedded(path, None, error="backbone: a feature is not finite in float16"))
                    continue
                positions = decoded.positions
                [vectors] = clip_vectors(self.aggregator, features[None], positions[None], self.representing)
                embedded.append(Embedded(path, vectors.mean(0), vectors))
        return embedded

    def save(self, folder: str) -> None:
        """Write everything that `load` needs into a folder, except the code of `hf:` and custom backbones."""
        import safetensors.torch

        self.aggregator.save(join(folder, "aggregator"))
        tensors = {name: value.cpu().contiguous() for name, value in self.backbone.trunk.state_dict().items()}
        with atomic_write(join(folder, _BACKBONE_FILE)) as file:
            file.write(safetensors.torch.save(tensors))
        with atomic_write(join(folder, "model.json")) as file:
            description = {"representing": self.representing.to_dict(), "backbone": weights_hash(self.backbone.trunk)}
            file.write(json.dumps(description, indent=2).encode())

    @classmethod
    def load(cls, folder: str, *, trust_custom_backbone: bool = False) -> VideoModel:
        """Read a folder that `save` wrote; no code in its files runs, except a custom backbone that is trusted.

        Raises
        ------
        UserError
            If a file is missing or damaged, or does not belong to the others; if the backbone is a user's own function
            and not trusted.
        """
        types_ = {"representing": dict[str, Any], "backbone": str}
        description = read_json(join(folder, "model.json"), "the description of an exported model", types_)
        representing = Representing.from_dict(description["representing"])
        aggregator = Aggregator.load(join(folder, "aggregator"))
        origin = aggregator.origin
        recorded = _recorded_options(origin, trust_custom_backbone=trust_custom_backbone)
        options = BackboneOptions.from_dict({**recorded.to_dict(), "weights": "none"})
        backbone = load_backbone(options, sampling_of(origin).frames)
        weights = join(folder, _BACKBONE_FILE)
        load_strictly(backbone.trunk, read_weights(weights), options.backbone, weights)
        if (actual := weights_hash(backbone.trunk)) != description["backbone"]:
            raise UserError(f"{weights}: expected tensors with the hash {description['backbone']}, found {actual}")
        backbone.weights_id = origin["weights"]
        return cls(backbone, aggregator, representing)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """The interface of MLflow: a pandas table of `path`, `vector` and `error`, one row per path.

        `model_input` is a list of paths, or a pandas table with paths in its first column. `vector` is a list of
        floats, None in a row with an `error`. Paths come from whoever sends requests, so only videos below
        `served_folders` are read, of which there are none by default.
        """
        import pandas as pd

        paths = model_input.iloc[:, 0].tolist() if isinstance(model_input, pd.DataFrame) else list(model_input)
        rows = self._served([str(path) for path in paths])
        columns = {
            "path": [row.path for row in rows],
            "vector": [None if row.vector is None else row.vector.tolist() for row in rows],
            "error": [row.error for row in rows],
        }
        # Columns of plain objects keep a missing value as None (null in JSON); others would turn it into NaN.
        return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})

    def _served(self, paths: Sequence[str]) -> list[Embedded]:
        """One result per path, in their order; an error for those that are not below the served folders."""
        allowed = [is_below(path, self.served_folders) for path in paths]
        embedded = iter(self.embed(itertools.compress(paths, allowed)))
        folders = ", ".join(self.served_folders) or f"nothing, since {SERVED_VARIABLE} is not set"
        error = f"path: expected a video below {folders}"
        return [
            next(embedded) if is_allowed else Embedded(path, None, error=error)
            for path, is_allowed in zip(paths, allowed, strict=True)
        ]


def _load_pyfunc(path: str) -> VideoModel:
    """Load a saved model; MLflow calls this by its name. The environment says what it may read and run."""
    model = VideoModel.load(path, trust_custom_backbone=os.environ.get(TRUST_VARIABLE) == "1")
    folders = os.environ.get(SERVED_VARIABLE, "").split(",")
    model.served_folders = tuple(absolute(folder.strip()) for folder in folders if folder.strip())
    return model
