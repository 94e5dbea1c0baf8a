"""Synthetic clips, trainers and stores, and a plain transcription of the objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scale_ray.aggregator import Aggregator
from scale_ray.clip_sets import Batch, ResidentClips
from scale_ray.clips import VideoGeometry
from scale_ray.config import PretrainConfig, Sampling
from scale_ray.pretraining import Trainer
from scale_ray.pretraining.objective import Objective
from scale_ray.store import ClipFeatures, FeatureStore, VideoFeatures, fingerprint_of

CPU = torch.device("cpu")
WIDTH = 768


def clips_of(videos: int, clips: int, seed: int = 0, width: int = WIDTH) -> ClipFeatures:
    """Random features and positions."""
    rng = np.random.default_rng(seed)
    return ClipFeatures(
        [f"{seed}-{number:06d}" for number in range(videos)],
        rng.standard_normal((videos, clips, width), np.float32).astype(np.float16),
        rng.random((videos, clips, 7), np.float32),
    )


def trainer_of(
    videos: int, clips: int, config: PretrainConfig, *, width: int = WIDTH, device: torch.device = CPU
) -> Trainer:
    """A trainer on random clips in the memory of the device."""
    return Trainer(ResidentClips.from_clips(clips_of(videos, clips, width=width), device), config, device=device)


def batch_of(trainer: Trainer) -> Batch:
    """The first batch of the first epoch."""
    return next(trainer.source.batches(trainer.worker_slice, trainer.config.sets, seed=0, epoch=0, first_step=0))


def plain_loss(aggregator: Aggregator, objective: Objective, batch: Batch) -> Tensor:
    """Sections 3 and 4 of the paper transcribed literally, with the same weights: predictions at all positions."""
    masked = batch.masked_SV
    c, h = plain_tokens(aggregator, batch)
    p = F.normalize(objective.clip_head(h).float(), dim=-1).flatten(0, 1)
    q = F.normalize(objective.target_head(batch.features_SVD).float(), dim=-1).flatten(0, 1)
    logits = p @ q.T / objective.options.clip_temperature
    losses = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    # Not losses[masked]: its size depends on values, for which a GPU would have to be waited for.
    clip_loss = (losses * masked.flatten()).sum() / masked.sum()
    return (plain_set_loss(objective, c) + clip_loss) / 2


def plain_tokens(aggregator: Aggregator, batch: Batch) -> tuple[Tensor, Tensor]:
    """The set token and the clip tokens, with explicit attention."""
    dropout = aggregator.options.dropout if aggregator.training else 0.0
    x = aggregator.embed(batch.features_SVD)
    x = torch.where(batch.masked_SV[..., None], aggregator.mask_token, x) + aggregator.position(batch.positions_SV7)
    x = torch.cat([aggregator.set_token.to(x.dtype).expand(len(x), 1, -1), x], 1)
    for block in aggregator.blocks:
        q, k, v = block.qkv(block.attention_norm(x)).unflatten(-1, (3, -1, 32)).permute(2, 0, 3, 1, 4)
        weights = F.dropout((q @ k.transpose(-2, -1) / 32**0.5).softmax(-1), dropout)
        x = x + block.dropout(block.out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)))
        x = x + block.dropout(block.mlp(block.mlp_norm(x)))
    x = aggregator.norm(x)
    return x[:, 0], x[:, 1:]


def plain_set_loss(objective: Objective, set_tokens: Tensor) -> Tensor:
    """The contrast of the set tokens, in both directions."""
    first, second = F.normalize(objective.set_head(set_tokens).float(), dim=-1).chunk(2)
    logits = first @ second.T / objective.options.set_temperature
    matches = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2


def gradients_of(trainer: Trainer, loss: Tensor) -> tuple[float, Tensor]:
    """The value of a loss, and its gradients for all parameters as one vector on the CPU."""
    for parameter in trainer.parameters:
        parameter.grad = None
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])
    return float(loss.detach()), gradients.cpu()


def make_store(folder: Path, videos: int, clips: int, width: int = WIDTH) -> FeatureStore:
    """A store of random features; it is written once and reused."""
    store = FeatureStore.create(str(folder), fingerprint_of({"backbone": "none", "weights": "none"}, Sampling()))
    if store.parts("features/part-"):
        return store
    for start in range(0, videos, 256):
        part = clips_of(min(256, videos - start), clips, start, width)
        rows = [
            VideoFeatures(*video, VideoGeometry(240, 320, 10.0, 30.0))
            for video in zip(part.video_ids, part.features, part.positions, strict=True)
        ]
        store.commit(store.part_name("train", part.video_ids), "train", rows)
    return store
