"""The way of a backbone actor: read-only blocks of pixels in memory, batches to the device, float16 features back.

The plain alternative waits for each batch: copy it, send it, embed it, fetch the features.
"""

from __future__ import annotations

import numpy as np
import torch

from gpu_parts.backbones import FRAMES, VARIANTS, backbone_options, clips_per_s, prepared
from gpu_parts.measure import Bench, rounded
from scale_ray.backbones import Backbone, FeatureExtractor, load_backbone
from scale_ray.config import Extraction

# The smallest and the largest input per clip among the four.
BACKBONES = ("r3d_18", "vit_b_16")
PRECISIONS = {"float32": "float32, as it ships", "bfloat16": "bfloat16"}


def blocks_of(backbone: Backbone, bench: Bench) -> list[np.ndarray]:
    """Read-only blocks of random clips, each of the size of a block of an extraction."""
    clip_bytes = FRAMES * backbone.input_px**2 * 3
    count = 3 if bench.tiny else Extraction().block_mib * 2**20 // clip_bytes
    rng = np.random.default_rng(0)
    blocks = []
    for _ in range(1 if bench.tiny else 3):
        block = rng.integers(0, 256, (count, FRAMES, backbone.input_px, backbone.input_px, 3), np.uint8)
        block.flags.writeable = False
        blocks.append(block)
    return blocks


def plain(backbone: Backbone, clips: np.ndarray, batch_clips: int, device: torch.device) -> np.ndarray:
    """The features of a block, batch by batch, each waited for."""
    starts = range(0, len(clips), batch_clips)
    batches = (torch.from_numpy(clips[start : start + batch_clips].copy()).to(device) for start in starts)
    return np.concatenate([backbone(batch).cpu().half().numpy() for batch in batches])


def actor_against_forward(backbone: Backbone, precision: str, bench: Bench) -> dict[str, float | str]:
    """Clips per second of the actor, of the plain loop and of the forward pass alone."""
    variant, batch_clips = VARIANTS[PRECISIONS[precision]], Extraction().batch_clips
    blocks = blocks_of(backbone, bench)
    count = sum(map(len, blocks))
    on_device = prepared(backbone, variant, bench)
    extractor = FeatureExtractor(on_device, [bench.device], batch_clips)

    def all_blocks() -> None:
        for block in blocks:
            extractor(block)

    def all_blocks_plainly() -> None:
        for block in blocks:
            plain(on_device, block, batch_clips, bench.device)

    forward = clips_per_s(backbone, variant, bench)
    actor = count / bench.seconds_of(all_blocks)
    loop = count / bench.seconds_of(all_blocks_plainly)
    return {
        "forward alone, clips/s": forward,
        "actor, clips/s": rounded(actor),
        "plain loop, clips/s": rounded(loop),
        "actor over plain loop": rounded(actor / loop, 3),
        "actor over forward": rounded(actor / forward, 3),
        "share of time that the GPU is busy": bench.busy_share(all_blocks),
    }


def copies(bench: Bench) -> dict[str, float]:
    """Speed of copies to the device in GB/s: of pageable memory, which an actor has, and of pinned memory."""
    size = 2**20 if bench.tiny else 2**26
    pageable = torch.ones(size, dtype=torch.uint8)
    figures = {"pageable": rounded(size / bench.seconds_of(lambda: pageable.to(bench.device, copy=True)) / 1e9)}
    if bench.on_gpu:
        pinned = pageable.pin_memory()
        figures["pinned"] = rounded(size / bench.seconds_of(lambda: pinned.to(bench.device, non_blocking=True)) / 1e9)
    return figures


def run(bench: Bench) -> None:
    for name in BACKBONES:
        backbone = load_backbone(backbone_options(bench)[name], FRAMES)
        for precision in PRECISIONS:
            bench.record((name, precision), actor_against_forward, backbone, precision, bench)
    bench.record(("copies to the device, GB/s",), copies, bench)
