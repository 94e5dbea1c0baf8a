"""SVT, the Self-supervised Video Transformer: a TimeSformer trained like DINO (one of the paper's five backbones).

The released file holds the teacher's tensors at its top level, under `backbone.` and `head.`; training checkpoints
contain `teacher` and `student`, of which the teacher is used, as in SVT's own evaluation. The model is the
TimeSformer of transformers with other tensor names. Depth, width and patch size follow from the shapes of the
file's tensors; an attention head is 64 wide, as in every ViT of that family.

All frames of a clip are seen, by default 16, as by the authors of the paper: the file's 8 time embeddings are
interpolated to the number of frames (nearest neighbour, as TimeSformer's own code does).

SVT was pretrained on pixels normalised with ImageNet's mean and standard deviation (in its video augmentation),
which is the default here. Its probes on other data sets used `--pixel-mean 0.45 --pixel-std 0.225`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scale_ray.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from scale_ray.backbones.huggingface import HuggingFaceTrunk, transformers_library
from scale_ray.backbones.random_weights import seeded
from scale_ray.backbones.weights import load_strictly, read_weights, state_in, unused_notes
from scale_ray.config import BackboneOptions
from scale_ray.errors import UserError

NAME = "svt"
_HEAD_WIDTH = 64
_FRAMES = 16  # of a clip, if no number is given

# Patterns of SVT's tensor names, replaced in this order by those of transformers.
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
    """Load svt with weights from one of SVT's files, or a ViT-B/16 with seeded random weights.

    Raises
    ------
    UserError
        If transformers is not installed, if no file is given or the file does not fit, or if the input size differs
        from that of the file's position embeddings.
    """
    library = transformers_library()
    weights_id, state, details, notes = None, None, {}, []
    if options.weights == "default":
        raise UserError(
            f"weights: {NAME} expected --weights FILE (from SVT's authors) or --weights none, found 'default'"
        )
    if options.weights == "none":
        config = library.TimesformerConfig(image_size=224, num_frames=8)
        weights_id = f"random, seed {options.backbone_seed}"
    else:
        state, unused = _teacher_state(read_weights(options.weights), options.weights)
        notes = unused_notes(NAME, unused)
        config = library.TimesformerConfig(**_config_of(state, options.weights))
    if options.input_px not in (None, config.image_size):
        raise UserError(f"input_px: {NAME} expected {config.image_size} px, found {options.input_px}")
    with seeded(options.backbone_seed):
        model = library.TimesformerModel(config)
    if state is not None:
        load_strictly(model, {_transformers_name(key): value for key, value in state.items()}, NAME, options.weights)
    frames, trained_frames = num_frames or _FRAMES, config.num_frames
    if frames != trained_frames:
        _interpolate_time(model, frames)
        details["time_embeddings"] = f"{trained_frames}, interpolated to {frames}"
    return Backbone(
        NAME,
        HuggingFaceTrunk(model, pooling="class token", sees_video=True),
        input_px=config.image_size,
        num_frames=frames,
        mean=options.pixel_mean or IMAGENET_MEAN,
        std=options.pixel_std or IMAGENET_STD,
        weights_id=weights_id,
        precision=options.precision,
        details=details,
        notes=notes,
    )


def _interpolate_time(model: Any, num_frames: int) -> None:
    """Let a TimeSformer take `num_frames` frames.

    The model itself would interpolate its time embeddings in every pass, but its layers take the number of frames from
    the configuration. As the trunk's own tensors, the embeddings are part of the hash that identifies the weights.
    """
    trained_1TD = model.embeddings.time_embeddings.detach()
    stretched_1DT = nn.functional.interpolate(trained_1TD.transpose(1, 2), size=num_frames, mode="nearest")
    model.embeddings.time_embeddings = nn.Parameter(stretched_1DT.transpose(1, 2).contiguous())
    model.config.num_frames = num_frames


def _teacher_state(contents: Mapping[str, Any], weights: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the teacher's model, and the names of its other tensors, those of its head."""
    prefix = "backbone."
    if "teacher" not in contents and not any(key.removeprefix("module.").startswith(prefix) for key in contents):
        keys = ", ".join(list(contents)[:5])
        raise UserError(f"weights: expected 'teacher' or {prefix}* among the keys of {weights!r}, found {keys}")
    state = state_in(contents, ("teacher",), weights)
    used = [key for key in state if key.startswith(prefix) and not key.startswith(f"{prefix}head.")]
    return {key.removeprefix(prefix): state[key] for key in used}, [key for key in state if key not in used]


def _config_of(state: Mapping[str, Tensor], weights: str) -> dict[str, Any]:
    """The TimeSformer configuration that matches the shapes of a file's tensors."""
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
            f"found {len(state)} tensors under backbone., missing or malformed: {error}"
        ) from error


def _transformers_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
