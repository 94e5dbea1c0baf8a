"""What the sampling of the authors' code changes in pixels and features: the input of `eval`, blur and contrast.

    python benchmarks/sampling.py shared/videos shared/weights/mobilenet_v2-imagenet.pth

Each video is decoded as the authors sample it and as it was before: `eval` crops at the input size of `train`, the
blur in pixels of the file, contrast around the mean of each frame.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from scale_ray.backbones import Backbone, load_backbone
from scale_ray.clips import Appearance
from scale_ray.config import BackboneOptions, Sampling
from scale_ray.decoding import decode, decode_clips
from scale_ray.decoding.augmentation import apply_augmentation


def per_frame(crops: np.ndarray, frames: list[np.ndarray], look: Appearance, scale: tuple[float, float]) -> np.ndarray:
    """In place of `apply_augmentation`: each frame as if it were a clip, with a mean level of its own."""
    pairs = zip(crops, frames, strict=True)
    return np.concatenate([apply_augmentation(crop[None], [frame], look, scale) for crop, frame in pairs])


def features_of(backbone: Backbone, clips: np.ndarray) -> torch.Tensor:
    return torch.cat([backbone(part) for part in torch.from_numpy(clips).split(4)])


def compared(name: str, backbone: Backbone, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Print how far clips and their features differ; pixels are compared at equal sizes alone."""
    cosines = torch.cat([torch.cosine_similarity(*(features_of(backbone, clips) for clips in pair)) for pair in pairs])
    same = [pair for pair in pairs if pair[0].shape == pair[1].shape]
    pixels = f"{np.mean([np.abs(a.astype(int) - b).mean() for a, b in same]):.2f}" if same else "other size"
    print(
        f"{name:20} clips {len(cosines):4}  pixels {pixels:>10}  cosine {cosines.mean():.4f}, least {cosines.min():.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--count", type=int, default=4, help="videos to decode")
    parser.add_argument("--frames", type=int, default=4, help="frames per clip")
    given = parser.parse_args()
    files = sorted(path for path in given.videos.rglob("*") if path.suffix in (".avi", ".mp4", ".webm", ".mkv"))
    # The same span as with 16 frames.
    sampling = Sampling(clips=8, frames=given.frames, stride=64 // given.frames)
    options = BackboneOptions(backbone="mobilenet_v2", weights=given.weights)
    backbone = load_backbone(options, given.frames, sampling.eval_scale)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"eval": [], "blur": [], "contrast": []}
    towards_train: tuple[list[float], list[float]] = ([], [])
    for path in files[:: max(len(files) // given.count, 1)][: given.count]:

        def clips(mode: str, options: Sampling, size_px: int, path: Path = path) -> np.ndarray:
            return decode_clips(str(path), path.name, mode, options, [size_px]).pixels[0]

        geometry = decode_clips(str(path), path.name, "eval", sampling, [32]).geometry
        of_file = replace(sampling, blur_short_px=min(geometry.height_px, geometry.width_px))
        print(f"{path.name}: {geometry.width_px} x {geometry.height_px} px")
        ours = clips("augmented", sampling, backbone.input_px)
        sizes = (backbone.eval_input_px, backbone.input_px)
        pairs["eval"].append((clips("eval", sampling, sizes[0]), clips("eval", sampling, sizes[1])))
        pairs["blur"].append((ours, clips("augmented", of_file, backbone.input_px)))
        train = features_of(backbone, clips("train", sampling, backbone.input_px)).mean(0)
        for number in (0, 1):
            mean = features_of(backbone, pairs["eval"][-1][number]).mean(0)
            towards_train[number].append(float(torch.cosine_similarity(mean, train, dim=0)))
        with mock.patch.object(decode, "apply_augmentation", per_frame):
            pairs["contrast"].append((ours, clips("augmented", sampling, backbone.input_px)))
    for name, of_name in pairs.items():
        compared(name, backbone, of_name)
    now, before = (np.mean(cosines) for cosines in towards_train)
    print(f"mean feature of eval against that of train: cosine {before:.4f} before, {now:.4f} now")


if __name__ == "__main__":
    main()
