"""SVT, the Self-supervised Video Transformer: a TimeSformer trained as DINO is (one of the paper's five).

SVT's files hold `teacher` and `student`; the teacher is what SVT itself evaluates. Its model is the
TimeSformer of transformers under other names. Depth, width, patches and the number of frames are read
off the file's own tensors; a head is 64 wide, as in every ViT of that family.

SVT was pretrained on pixels normalised as ImageNet's (its augmentation for video), and so they are here;
its probes on other data sets used 0.45 and 0.225, which `--pixel-mean 0.45 --pixel-std 0.225` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scale_ray.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, require_frames
from scale_ray.backbones.huggingface import HuggingFaceTrunk, transformers_library
from scale_ray.backbones.random_weights import seeded
from scale_ray.backbones.weights import load_strictly, read_weights, state_in
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

NAME = "svt"
_HEAD_WIDTH = 64

# SVT's names, in the order in which they are replaced, and those of transformers.
_RENAMES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^time_embed$", "embeddings.time_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.temporal_norm1\.", ".temporal_layernorm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.temporal_attn\.qkv\.", ".temporal_attention.attention.qkv."),
    (r"\.temporal_attn\.proj\.", ".temporal_attention.output.dense."),
    (r"\.temporal_fc\.", ".temporal_dense."),
    (r"\.attn\.qkv\.", ".attention.attention.qkv."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def load_svt(options: BackboneOptions, num_frames: int | None) -> Backbone:
    """svt with the weights of one of SVT's files, or ViT-B/16 with seeded random ones.

    Raises
    ------
    UserError
        Where transformers is missing, no file is given or one that does not fit, the input has another
        size than the file's position embeddings, or a clip has fewer frames than its time embeddings.
    """
    library = transformers_library()
    weights_id, state = None, None
    if options.weights == "default":
        raise UserError(f"weights: {NAME} expected --weights FILE, from SVT, or --weights none, found 'default'")
    if options.weights == "none":
        config = library.TimesformerConfig(image_size=224, num_frames=8)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        state = _teacher_state(read_weights(options.weights), options.weights)
        config = library.TimesformerConfig(**_shape_of(state, options.weights))
    require_frames(NAME, config.num_frames, num_frames)
    if options.input_px not in (None, config.image_size):
        raise UserError(f"input_px: {NAME} expected {config.image_size} px, found {options.input_px}")
    with seeded(options.backbone_seed):
        model = library.TimesformerModel(config)
    if state is not None:
        load_strictly(model, {_renamed(key): value for key, value in state.items()}, NAME, options.weights)
    return Backbone(
        NAME,
        HuggingFaceTrunk(model, pooling="class token", sees_video=True),
        input_px=config.image_size,
        num_frames=config.num_frames,
        mean=options.pixel_mean or IMAGENET_MEAN,
        std=options.pixel_std or IMAGENET_STD,
        weights_id=weights_id,
        precision=options.precision,
    )


def _teacher_state(read: Mapping[str, Any], weights: str) -> dict[str, Tensor]:
    if "teacher" not in read:
        raise UserError(f"weights: expected 'teacher' among the keys of {weights!r}, found {', '.join(list(read)[:5])}")
    state = state_in(read, ("teacher",), weights)
    inside = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return {key: value for key, value in inside.items() if not key.startswith("head.")}


def _shape_of(state: Mapping[str, Tensor], weights: str) -> dict[str, Any]:
    """The settings of the TimeSformer that a file's tensors belong to."""
    try:
        width, _, patch_px, _ = state["patch_embed.proj.weight"].shape
        num_patches = state["pos_embed"].shape[1] - 1
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        return {
            "hidden_size": width,
            "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
            "num_attention_heads": width // _HEAD_WIDTH,
            "num_hidden_layers": depth,
            "patch_size": patch_px,
            "image_size": patch_px * round(num_patches**0.5),
            "num_frames": state["time_embed"].shape[1],
        }
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"weights: expected the teacher of an SVT in {weights!r} (keys such as backbone.time_embed), "
            f"found {len(state)} tensors under backbone. and an unfit {error}"
        ) from error


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
