"""The forward pass of frozen backbones, from pixels that are on the device already, in clips per second.

Three video models and an image model that is applied frame by frame, all with random weights. The plain alternative is
float32 without tensor cores; `as it ships` is what an extraction does by default.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_parts.measure import Bench, float32_products, relative, rounded
from scale_ray.backbones import Backbone, load_backbone
from scale_ray.config import BackboneOptions

NAMES = ("r3d_18", "mvit_v2_s", "VideoMAE-B", "vit_b_16")
FRAMES = 16
BATCH_CLIPS = 16
PLAIN = "float32, exact"
SHIPPED = "float32, as it ships"


@dataclass(frozen=True)
class Variant:
    """A way to run a backbone: its data type, how float32 products are computed, its memory layout, and its batch."""

    precision: str = "float32"
    products: str = "default"
    autocast: bool = False
    channels_last: bool = False
    batch_clips: int = BATCH_CLIPS


VARIANTS = {
    PLAIN: Variant(products="exact"),
    SHIPPED: Variant(),
    "TF32": Variant(products="tf32"),
    "TF32, channels last": Variant(products="tf32", channels_last=True),
    "float16": Variant("float16"),
    "bfloat16": Variant("bfloat16"),
    "bfloat16, autocast": Variant(autocast=True),
    "bfloat16, channels last": Variant("bfloat16", channels_last=True),
    "bfloat16, batches of 64": Variant("bfloat16", batch_clips=64),
}
TO_COMPILE = ("TF32", "bfloat16")


def backbone_options(bench: Bench) -> dict[str, BackboneOptions]:
    """The four backbones by name, at their own input sizes; with `tiny` small stand-ins."""
    folder = bench.folder / "videomae"
    folder.mkdir(exist_ok=True)
    small = {"image_size": 16, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
    config = {"model_type": "videomae", "use_mean_pooling": True, **(small if bench.tiny else {})}
    (folder / "config.json").write_text(json.dumps(config))
    if bench.tiny:
        names, input_px = ("r3d_18", "mc3_18", f"hf:{folder}", "shufflenet_v2_x0_5"), 16
    else:
        names, input_px = ("r3d_18", "mvit_v2_s", f"hf:{folder}", "vit_b_16"), None
    return {
        name: BackboneOptions(backbone=chosen, weights="none", input_px=input_px)
        for name, chosen in zip(NAMES, names, strict=True)
    }


def clips_for(backbone: Backbone, count: int, bench: Bench) -> Tensor:
    """Random clips on the device: uint8 (count, T, S, S, 3)."""
    size = (count, FRAMES, backbone.input_px, backbone.input_px, 3)
    generator = torch.Generator(bench.device).manual_seed(0)
    return torch.randint(0, 256, size, dtype=torch.uint8, device=bench.device, generator=generator)


def prepared(backbone: Backbone, variant: Variant, bench: Bench) -> Backbone:
    """A copy of the backbone on the device, in the precision and memory layout of a variant."""
    backbone = copy.deepcopy(backbone)
    backbone.compute_in(variant.precision)
    if variant.channels_last:
        layout = torch.channels_last_3d if backbone.sees_video else torch.channels_last
        backbone.trunk.to(memory_format=layout)
    return backbone.to(bench.device)


def forward_of(backbone: Backbone, variant: Variant, bench: Bench) -> Callable[[Tensor], Tensor]:
    """The forward pass of a prepared backbone, with the autocast of its variant."""

    def forward(pixels: Tensor) -> Tensor:
        autocast = torch.autocast(bench.device.type, torch.bfloat16) if variant.autocast else nullcontext()
        with torch.inference_mode(), autocast:
            return backbone(pixels)

    return forward


def not_measured(variant: Variant, bench: Bench) -> str | None:
    """Why a variant is left out on this device, if it is."""
    if variant.precision == "float16" and not bench.on_gpu:
        return "not measured: a convolution in float16 takes seconds on a CPU"
    return None


def clips_per_s(backbone: Backbone, variant: Variant, bench: Bench) -> float:
    """Clips per second of the forward pass."""
    with float32_products(variant.products):
        count = 1 if bench.tiny else variant.batch_clips
        forward, pixels = (
            forward_of(prepared(backbone, variant, bench), variant, bench),
            clips_for(backbone, count, bench),
        )
        return rounded(count / bench.seconds_of(lambda: forward(pixels)))


def rate_or_reason(backbone: Backbone, variant: Variant, bench: Bench) -> float | str:
    return not_measured(variant, bench) or clips_per_s(backbone, variant, bench)


def trunk_alone(backbone: Backbone, bench: Bench) -> float:
    """Clips per second of the trunk in bfloat16, from floats that are normalised already."""
    count = 1 if bench.tiny else BATCH_CLIPS
    trunk = prepared(backbone, VARIANTS["bfloat16"], bench).trunk
    pixels = clips_for(backbone, count, bench).to(torch.bfloat16)
    images = pixels.permute(0, 4, 1, 2, 3) if backbone.sees_video else pixels.flatten(0, 1).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return rounded(count / bench.seconds_of(lambda: trunk(images)))


def run(bench: Bench) -> None:
    for name, options in backbone_options(bench).items():
        backbone = load_backbone(options, FRAMES)
        rates = {
            variant_name: bench.record((name, "clips/s", variant_name), rate_or_reason, backbone, variant, bench)
            for variant_name, variant in VARIANTS.items()
        }
        bench.record((name, "clips/s", "bfloat16, trunk alone"), trunk_alone, backbone, bench)
        bench.record((name, f"times as fast as {PLAIN}"), relative, rates, PLAIN)


def run_compiled(bench: Bench) -> None:
    """The trunk compiled, against the same one as it is, and the seconds until the first result."""
    for name, options in backbone_options(bench).items():
        backbone = load_backbone(options, FRAMES)
        for variant_name in TO_COMPILE:
            bench.record((name, variant_name), compiled_against_eager, backbone, VARIANTS[variant_name], bench)


def compiled_against_eager(backbone: Backbone, variant: Variant, bench: Bench) -> dict[str, float]:
    """Clips per second before and after compiling, and the time of the first call, which compiles."""
    eager = clips_per_s(backbone, variant, bench)
    with float32_products(variant.products):
        count = 1 if bench.tiny else variant.batch_clips
        compiled, pixels = prepared(backbone, variant, bench), clips_for(backbone, count, bench)
        compiled.trunk.compile(backend=bench.compiler, dynamic=False)
        forward = forward_of(compiled, variant, bench)
        began_s = time.perf_counter()
        forward(pixels)
        bench.wait()
        first_s = time.perf_counter() - began_s
        rate = rounded(count / bench.seconds_of(lambda: forward(pixels)))
    torch.compiler.reset()
    return {
        "eager, clips/s": eager,
        "compiled, clips/s": rate,
        "times as fast": rounded(rate / eager, 3),
        "first call, s": rounded(first_s, 3),
    }
