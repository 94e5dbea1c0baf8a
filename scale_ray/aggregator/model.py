"""The aggregator: a small transformer over a set of clip features (section 3 of the paper).

Dimension letters: S sets, V clips in a set, D feature width, E aggregator width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn
from torch.nn import functional as F

from scale_ray.aggregator.positions import normalised_positions
from scale_ray.config import AggregatorOptions
from scale_ray.errors import UserError, first_line
from scale_ray.files.locations import atomic_write, exists, join
from scale_ray.files.small_files import check_types, content_of, read_json

HEAD_WIDTH = 32

# What `config.json` holds besides the options, and what must be in its records.
_SETTINGS = {"feature_width": int, "origin": dict, "trained_on": dict | None}
_TRAINED_ON = {
    "videos": int,
    "unlabelled": int,
    "splits": dict[str, dict[str, int]],
    "set_size": int,
    "mode": str | None,  # older ones lack it
    "store": str,
    "other_stores": list[dict[str, Any]] | None,  # of an aggregator that was trained on several
}
_ORIGIN = {"backbone": str, "weights": str, "sampling": dict[str, dict[str, Any]], "sampling_seed": int}


def check_origin(origin: Mapping[str, Any]) -> None:
    """Check that the `origin` of an aggregator names its backbone and its sampling.

    Raises
    ------
    UserError
        If it does not.
    """
    kind = "an aggregator that records its backbone and sampling,"
    check_types(origin, "checkpoint", kind, {**_ORIGIN, "made_with": dict | None})


class Block(nn.Module):
    """One pre-norm transformer block, without any encoding of the order of its tokens."""

    def __init__(self, options: AggregatorOptions) -> None:
        super().__init__()
        width, hidden = options.width, round(options.width * options.mlp_ratio)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(options.dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self._attend(self.attention_norm(tokens)))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))

    def _attend(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(heads.transpose(1, 2).flatten(2))


class Aggregator(nn.Module, ModelHubMixin):
    """Maps the clip features and positions of a set to one set token, and one token per clip.

    `load` and `save` read and write a folder or URI; `from_pretrained`, `save_pretrained` and `push_to_hub` do
    the same by the conventions of the Hugging Face Hub. Two records are saved with the weights: `origin`, the
    fingerprint of the store that the aggregator was trained on, with its backbone and sampling; and
    `trained_on`, a summary of the videos that it was trained on (`pretraining.trained_on`).
    """

    def __init__(
        self,
        feature_width: int,
        options: AggregatorOptions,
        origin: Mapping[str, Any] | None = None,
        trained_on: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.feature_width = feature_width
        self.options = options
        self.origin = dict(origin or {})
        self.trained_on = dict(trained_on or {})
        width = options.width
        self.embed = nn.Linear(feature_width, width)
        self.position = nn.Sequential(nn.Linear(7, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.set_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, features_SVD: Tensor, positions_SV7: Tensor, masked_SV: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The set token (S, E) and the clip tokens (S, V, E), for any V.

        `positions_SV7` are normalised (`normalised_positions`). A masked clip is replaced by the mask
        token before its position code is added.
        """
        tokens = self.embed(features_SVD)
        if masked_SV is not None:
            tokens = torch.where(masked_SV[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = tokens + self._position_code(positions_SV7).to(tokens.dtype)
        tokens = torch.cat([self.set_token.to(tokens.dtype).expand(len(tokens), 1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens[:, 0], tokens[:, 1:]

    def _position_code(self, positions_SV7: Tensor) -> Tensor:
        if self.options.position_scale == "set":
            positions_SV7 = normalised_positions(positions_SV7)
        # In bfloat16 a start time of a 10-minute video would be rounded by 0.4 s.
        with torch.autocast(positions_SV7.device.type, enabled=False):
            return self.position(positions_SV7)

    def save(self, folder: str) -> None:
        """Write `config.json` and `model.safetensors` into a folder or URI."""
        settings = {
            "feature_width": self.feature_width,
            **self.options.to_dict(),
            "origin": self.origin,
            "trained_on": self.trained_on,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic_write(join(folder, "model.safetensors")) as file:
            file.write(safetensors.torch.save(tensors))
        with atomic_write(join(folder, "config.json")) as file:
            file.write(json.dumps(settings, indent=2).encode())

    @classmethod
    def load(cls, folder: str) -> Aggregator:
        """Read an aggregator that `save` wrote, on the CPU in evaluation mode; no code in the files is executed.

        Raises
        ------
        UserError
            If there is no aggregator in the folder, or a damaged one.
        """
        if not exists(join(folder, "config.json")):
            raise UserError(f"expected an aggregator (config.json and model.safetensors), found none at {folder}")
        path, kind = join(folder, "config.json"), "the settings of an aggregator"
        settings = read_json(path, kind, _SETTINGS)
        if settings.get("trained_on"):
            seen, of_videos = settings["trained_on"], f"{kind} and the videos it was trained on"
            check_types(seen, path, of_videos, _TRAINED_ON)
            for of_store in seen.get("other_stores") or []:
                check_types(of_store, path, of_videos, _TRAINED_ON)
        feature_width, origin = settings.pop("feature_width"), settings.pop("origin")
        trained_on = settings.pop("trained_on", None)
        content = content_of(join(folder, "model.safetensors"), "the weights of an aggregator")
        try:
            aggregator = cls(feature_width, AggregatorOptions.from_dict(settings), origin, trained_on)
            aggregator.load_state_dict(safetensors.torch.load(content))
        except Exception as error:  # arbitrary bytes can make the reader raise exceptions of many types
            raise UserError(
                f"expected an intact aggregator, found a damaged one at {folder}: {first_line(error)}"
            ) from error
        if not all(bool(tensor.isfinite().all()) for tensor in aggregator.state_dict().values()):
            raise UserError(f"{folder}: expected an aggregator with finite weights, found some that are not")
        return aggregator.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(str(save_directory))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None = None, **options: Any) -> Aggregator:
        if os.path.isdir(model_id):
            return cls.load(model_id)
        supported = ("cache_dir", "force_download", "local_files_only", "token")
        download_options = {name: options[name] for name in supported if name in options}
        files = ["config.json", "model.safetensors"]
        return cls.load(snapshot_download(model_id, revision=revision, allow_patterns=files, **download_options))
