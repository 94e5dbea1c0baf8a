"""Whether the GPU computes what the CPU computes: draws, losses and gradients, features, and a continued run.

Draws must be equal. Everything else is reported as a relative difference, beside the one that rounding makes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from pretraining_steps import CPU, batch_of, clips_of, gradients_of, plain_loss
from torch import Tensor

from gpu_parts.backbones import FRAMES, VARIANTS, backbone_options, clips_for, forward_of, not_measured, prepared
from gpu_parts.measure import Bench, float32_products, rounded
from gpu_parts.pretraining import trainer_for
from scale_ray.backbones import Backbone, load_backbone
from scale_ray.clip_sets import ResidentClips
from scale_ray.config import PretrainConfig, Sets, Training
from scale_ray.pretraining import Trainer

PRECISIONS = ("float32, exact", "float32, as it ships", "TF32", "float16", "bfloat16", "bfloat16, autocast")


def draws(bench: Bench) -> dict[str, bool]:
    """Whether sets and masks are equal on CPU and device."""
    stored = clips_of(64, 16)
    equal = {}
    for name, sets in (("mask ratio", Sets()), ("masked clips", Sets(masked_clips=3))):
        on_cpu, on_device = (
            ResidentClips.from_clips(stored, device).draw(torch.arange(64, device=device), sets, seed=1, epoch=2)
            for device in (CPU, bench.device)
        )
        equal[f"masks, {name}"] = torch.equal(on_cpu.masked_SV, on_device.masked_SV.cpu())
        equal[f"features, {name}"] = torch.equal(on_cpu.features_SVD, on_device.features_SVD.cpu())
    if not all(equal.values()):
        raise AssertionError(f"draws differ: {equal}")
    return equal


def losses_and_gradients(bench: Bench) -> dict[str, Any]:
    """Relative differences of loss and gradients from those of the plain transcription on the CPU in float32."""
    expected_loss, expected = _gradients(Bench(CPU, bench.tiny, bench.folder, bench.send), "float32", plain=True)
    figures: dict[str, Any] = {}
    for name, precision, products in (
        ("float32, exact", "float32", "exact"),
        ("TF32", "float32", "tf32"),
        ("bfloat16", "bfloat16", "default"),
    ):
        with float32_products(products):
            loss, gradients = _gradients(bench, precision, plain=False)
        figures[name] = {
            "loss": rounded(abs(loss - expected_loss) / abs(expected_loss), 2),
            "gradients": rounded(float((gradients - expected).norm() / expected.norm()), 2),
        }
    if figures["float32, exact"]["loss"] > 1e-5 or figures["float32, exact"]["gradients"] > 1e-4:
        raise AssertionError(f"expected differences below 1e-5 and 1e-4 in float32, found {figures}")
    return figures


def _gradients(bench: Bench, precision: str, *, plain: bool) -> tuple[float, Tensor]:
    """The loss and the gradients of the first batch, without dropout."""
    trainer = trainer_for(bench, 768, precision)
    trainer.aggregator.eval()
    batch = batch_of(trainer)
    if plain:
        return gradients_of(trainer, plain_loss(trainer.aggregator, trainer.objective, batch))
    with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        tokens = trainer.aggregator(batch.features_SVD, batch.positions_SV7, batch.masked_SV)
        projections = trainer.objective.project(*tokens, batch.features_SVD, batch.masked_SV)
    return gradients_of(trainer, trainer.objective.losses(projections).loss)


class Stopped(Exception):
    """Ends an epoch in its middle."""


def continued_run(bench: Bench) -> dict[str, float]:
    """Relative differences of the weights: a run that was stopped within an epoch and continued, against an undisturbed
    one; and two undisturbed runs against each other."""
    config = PretrainConfig(training=Training(batch=8 if bench.tiny else 128, epochs=2))
    clips = clips_of(24 if bench.tiny else 512, 16)

    def new() -> Trainer:
        return Trainer(ResidentClips.from_clips(clips, bench.device), config, device=bench.device)

    def finished(trainer: Trainer) -> Tensor:
        while not trainer.finished:
            trainer.run_epoch()
        return torch.cat([p.detach().flatten() for p in trainer.parameters]).cpu()

    def stop(_: dict[str, Tensor]) -> None:
        if stopped.steps == 2:
            raise Stopped

    undisturbed, again, stopped = finished(new()), finished(new()), new()
    state = io.BytesIO()
    try:
        stopped.run_epoch(stop)
    except Stopped:
        torch.save(stopped.state(), state)
    state.seek(0)
    continued = new()
    continued.restore(torch.load(state, map_location="cpu", weights_only=True))
    if (continued.epoch, continued.step_of_epoch) != (0, 2):
        raise AssertionError(f"expected to continue after step 2, found {continued.epoch, continued.step_of_epoch}")
    return {
        "continued against undisturbed": float((finished(continued) - undisturbed).norm() / undisturbed.norm()),
        "undisturbed, twice": float((again - undisturbed).norm() / undisturbed.norm()),
    }


def features(backbone: Backbone, bench: Bench) -> dict[str, Any]:
    """Features of the device against those of the CPU in float32, by precision: the largest relative error of a clip,
    and the error relative to how much clips differ from each other."""
    count = 2 if bench.tiny else 4
    cpu = Bench(CPU, bench.tiny, bench.folder, bench.send)
    clips = smooth(clips_for(backbone, count, cpu))
    expected = forward_of(prepared(backbone, VARIANTS["float32, exact"], cpu), VARIANTS["float32, exact"], cpu)(clips)
    spread = (expected - expected.mean(0)).norm(dim=1).mean()

    def errors(found: Tensor) -> dict[str, float]:
        difference = (found - expected).norm(dim=1)
        return {
            "of the feature": rounded(float((difference / expected.norm(dim=1)).max()), 2),
            "of the differences between clips": rounded(float(difference.max() / spread), 2),
        }

    figures = {"rounding of what is stored, float16": errors(expected.half().float())}
    for name in PRECISIONS:
        variant = VARIANTS[name]
        if reason := not_measured(variant, bench):
            figures[name] = reason
            continue
        with float32_products(variant.products):
            on_device = prepared(backbone, variant, bench)
            found = forward_of(on_device, variant, bench)(clips.to(bench.device)).cpu()
        if not np.isfinite(found.numpy()).all():
            raise AssertionError(f"a feature is not finite in {name}")
        figures[name] = errors(found)
    return figures


def smooth(clips: Tensor) -> Tensor:
    """Clips of smooth random content, since networks answer to noise of single pixels in an unusual way."""
    frames, size = clips.shape[1:3]
    coarse = clips[:, ::4, :8, :8].permute(0, 4, 1, 2, 3).float()
    fine = torch.nn.functional.interpolate(coarse, size=(frames, size, size), mode="trilinear")
    return fine.permute(0, 2, 3, 4, 1).round().to(torch.uint8)


def run(bench: Bench) -> None:
    bench.record(("draws are equal",), draws, bench)
    bench.record(("losses and gradients against the CPU",), losses_and_gradients, bench)
    bench.record(("weights of a continued run",), continued_run, bench)
    for name, options in backbone_options(bench).items():
        bench.record(("features against the CPU", name), features, load_backbone(options, FRAMES), bench)
