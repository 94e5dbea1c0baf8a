"""Backbone, aggregator and sampling as one: video files to vectors, for others to load and to serve.

An aggregator's folder names its backbone and its sampling. Saved as a whole, the backbone's weights lie
beside it as safetensors, and nothing is executed to load them:

    aggregator/           config.json and model.safetensors
    backbone.safetensors
    model.json            a hash of these, and the sets that a video's clips are dealt into
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from scale_ray.aggregator import Aggregator, clip_representations, tokens_of_clips
from scale_ray.backbones import Backbone, hash_of, load_backbone, load_strictly, read_weights
from scale_ray.clip_sets import normalised_positions
from scale_ray.config import BackboneOptions, Extraction, Representing, Sampling
from scale_ray.decoding import Decoder, Request, SharedPixels, video_bytes
from scale_ray.errors import UserError, VideoError
from scale_ray.locations import atomic_write, join, read_bytes

_CLIPS_AT_ONCE = 16
_BACKBONE_FILE = "backbone.safetensors"


@dataclass(frozen=True)
class Embedded:
    """A video's representation, float32 (D + E,), and those of its clips (N, D + E); or why there is none."""

    path: str
    vector: np.ndarray | None
    clips: np.ndarray | None = None
    error: str | None = None


@torch.inference_mode()
def vectors_of(aggregator: Aggregator, features: np.ndarray, positions: np.ndarray, ensemble: int) -> np.ndarray:
    """`[x, c]` of every clip, float32 (videos, N, D + E), from what a store holds of them.

    `features` (videos, N, D), rounded to float16 as in a store, so that it does not matter whether they have been
    in one; `positions` (videos, N, 7) in pixels and seconds.
    """
    stored = torch.from_numpy(np.ascontiguousarray(features, np.float16))
    places = normalised_positions(torch.from_numpy(np.array(positions, np.float32)))
    return clip_representations(stored, tokens_of_clips(aggregator, stored, places, ensemble)).numpy()


def sampling_of(origin: Mapping[str, Any]) -> Sampling:
    """The sampling that an aggregator's features were made with."""
    merged = dict(chain.from_iterable(of.items() for of in origin["sampling"].values()))
    return Sampling.from_dict({**merged, "sampling_seed": origin["sampling_seed"]})


def backbone_of(origin: Mapping[str, Any], weights_at: str | None = None) -> Backbone:
    """The backbone that an aggregator's features were made with, its weights from where they were then.

    Raises
    ------
    UserError
        Where it is not known or cannot be had, or where other weights are found than those of the features.
    """
    if "made_with" not in origin and weights_at is None:
        raise UserError(
            "weights_at: expected --weights-at default or FILE, since the aggregator does not say, found none"
        )
    options = BackboneOptions.from_dict(origin.get("made_with") or _options_in(origin))
    if weights_at is not None:
        options = BackboneOptions.from_dict({**options.to_dict(), "weights": weights_at})
    backbone = load_backbone(options, sampling_of(origin).frames)
    if backbone.weights_id != origin["weights"]:
        raise UserError(
            f"weights_at: expected the weights {origin['weights']} of {origin['backbone']}, found "
            f"{backbone.weights_id} in {options.weights!r}; give another --weights-at"
        )
    return backbone


def _options_in(origin: Mapping[str, Any]) -> dict[str, Any]:
    names = ("backbone", "input_px", "pixel_mean", "pixel_std", "precision", "frame_pooling")
    options = {name: origin[name] for name in names}
    return {**options, "frame_pooling": "mean" if options["frame_pooling"] == "none" else options["frame_pooling"]}


class VideoModel:
    """Video files to representations, in this process; a file that cannot be used gets an error of its own.

    The clips are those of mode `eval`. Decoding runs in a supervised child process.
    """

    def __init__(self, backbone: Backbone, aggregator: Aggregator, representing: Representing) -> None:
        self.backbone, self.aggregator, self.representing = backbone, aggregator, representing
        self.sampling = sampling_of(aggregator.origin)

    @classmethod
    def of(
        cls, aggregator: Aggregator, representing: Representing | None = None, weights_at: str | None = None
    ) -> VideoModel:
        """With the backbone that the aggregator's folder names (`backbone_of`)."""
        if "backbone" not in aggregator.origin:
            raise UserError("checkpoint: expected an aggregator that knows its backbone, found one that does not")
        return cls(backbone_of(aggregator.origin, weights_at), aggregator, representing or Representing())

    def embed(self, paths: Iterable[str]) -> list[Embedded]:
        """The representation of each video, in order; paths or URIs."""
        limits, side = Extraction(), self.backbone.input_px
        pixels = SharedPixels(video_bytes("eval", self.sampling, [side]))
        shape = (self.sampling.num_clips("eval"), self.sampling.frames, side, side, 3)
        embedded = []
        with Decoder(timeout_s=limits.decode_timeout_s, memory_gib=limits.decode_memory_gib) as decoder:
            for path in paths:
                try:
                    decoded = decoder.decode(Request(path, path, "eval", self.sampling, (side,), (0,)), pixels)
                except VideoError as error:
                    embedded.append(Embedded(path, None, error=f"{error.stage}: {error.reason}"))
                    continue
                clips = torch.from_numpy(np.frombuffer(pixels.memory, np.uint8).reshape(shape).copy())
                features = torch.cat([self.backbone(some) for some in clips.split(_CLIPS_AT_ONCE)]).numpy()
                if not np.isfinite(features.astype(np.float16)).all():
                    embedded.append(Embedded(path, None, error="backbone: a feature is not finite in float16"))
                    continue
                ensemble = self.representing.ensemble
                [whole] = vectors_of(self.aggregator, features[None], decoded.positions[None], ensemble)
                embedded.append(Embedded(path, whole.mean(0), whole))
        return embedded

    def save(self, folder: str) -> None:
        """Write all that `load` needs into a folder; hf: and a user's own backbones are still built by their name."""
        import safetensors.torch

        self.aggregator.save(join(folder, "aggregator"))
        tensors = {name: value.cpu().contiguous() for name, value in self.backbone.trunk.state_dict().items()}
        with atomic_write(join(folder, _BACKBONE_FILE)) as file:
            file.write(safetensors.torch.save(tensors))
        with atomic_write(join(folder, "model.json")) as file:
            described = {"representing": self.representing.to_dict(), "backbone": hash_of(self.backbone.trunk)}
            file.write(json.dumps(described, indent=2).encode())

    @classmethod
    def load(cls, folder: str) -> VideoModel:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            Where a file is missing, damaged, or does not belong to the others.
        """
        aggregator = Aggregator.load(join(folder, "aggregator"))
        origin = aggregator.origin
        options = BackboneOptions.from_dict({**(origin.get("made_with") or _options_in(origin)), "weights": "none"})
        backbone = load_backbone(options, sampling_of(origin).frames)
        weights = join(folder, _BACKBONE_FILE)
        load_strictly(backbone.trunk, read_weights(weights), options.backbone, weights)
        described = json.loads(read_bytes(join(folder, "model.json")))
        if (found := hash_of(backbone.trunk)) != described["backbone"]:
            raise UserError(f"{weights}: expected tensors with the hash {described['backbone']}, found {found}")
        backbone.weights_id = origin["weights"]
        return cls(backbone, aggregator, Representing.from_dict(described["representing"]))

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """MLflow's interface: paths, a list or a pandas table's first column, to a table of `path`, `vector`, `error`.

        `vector` is a list of floats, None in a row that has an `error`.
        """
        import pandas as pd

        paths = model_input.iloc[:, 0].tolist() if isinstance(model_input, pd.DataFrame) else list(model_input)
        rows = self.embed(str(path) for path in paths)
        columns = {
            "path": [row.path for row in rows],
            "vector": [None if row.vector is None else row.vector.tolist() for row in rows],
            "error": [row.error for row in rows],
        }
        # As plain objects: a text that is missing is None then, and null in JSON, and not a number that is none.
        return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def _load_pyfunc(path: str) -> VideoModel:
    """What MLflow calls to load the model."""
    return VideoModel.load(path)
