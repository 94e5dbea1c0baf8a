"""Files of weights as they are published: same names and shapes, but one number repeated, which takes little space."""

from __future__ import annotations

from pathlib import Path

import torch

from scale_ray.backbones.slow_r50 import SlowR50


def sized(*shape: int, value: float = 1.0) -> torch.Tensor:
    """A tensor of any shape that takes no space in a file."""
    return torch.tensor(value).expand(shape)


def write_contrastive_slow_r50(path: Path, *copies: str) -> Path:
    """A file of SlowFast's model zoo with the same weights in every copy, and a projection head in each."""
    shapes = {key: value.shape for key, value in SlowR50().state_dict().items()}
    shapes["ssl_128.projection.0.weight"] = torch.Size([4096, 2048])
    state = {f"{copy}.{key}": sized(*shape, value=0.5) for copy in copies for key, shape in shapes.items()}
    torch.save({"model_state": state}, path)
    return path


def released_svt() -> dict[str, torch.Tensor]:
    """The tensors of `kinetics400_vitb_ssl.pth`, a flat dictionary; its 8 time embeddings are random numbers."""
    width, blocks = 768, 12
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 197, width), "time_embed": (1, 8, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "temporal_attn.qkv": (3, 1), "temporal_attn.proj": (1, 1)}
    linear |= {"temporal_fc": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in (f"blocks.{index}" for index in range(blocks)):
        for name in ("norm1", "norm2", "temporal_norm1"):
            shapes |= {f"{block}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
        for name, (out, into) in linear.items():
            shapes |= {f"{block}.{name}.weight": (out * width, into * width), f"{block}.{name}.bias": (out * width,)}
    tensors = {f"backbone.{key}": sized(*shape, value=0.5) for key, shape in shapes.items()}
    tensors["backbone.time_embed"] = torch.randn(1, 8, width)
    tensors |= {f"head.mlp.{index}.bias": sized(2048) for index in (0, 2)}
    return tensors | {"head.last_layer.weight_v": sized(65536, 256)}
