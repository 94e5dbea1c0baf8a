"""The objective against a literal transcription of its formulas, alone and over workers."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from scale_ray.config import ObjectiveOptions
from scale_ray.objective import Objective

OPTIONS = ObjectiveOptions(
    prediction_hidden=24,
    target_hidden=20,
    contrast_width=8,
    set_temperature=0.3,
    clip_temperature=0.15,
    set_weight=2.0,
    clip_weight=1.0,
)
WIDTH, FEATURES = 16, 12


def inputs(videos: int, clips: int = 4, ratio: float = 0.4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sets = 2 * videos
    return [
        torch.randn(sets, WIDTH, generator=generator, dtype=torch.float64),
        torch.randn(sets, clips, WIDTH, generator=generator, dtype=torch.float64),
        torch.randn(sets, clips, FEATURES, generator=generator, dtype=torch.float64),
        torch.rand(sets, clips, generator=generator) < ratio,
    ]


def made() -> Objective:
    torch.manual_seed(0)
    return Objective(FEATURES, WIDTH, OPTIONS).double()


def literal(objective: Objective, c: Tensor, h: Tensor, x: Tensor, masked: Tensor) -> Tensor:
    """Section 4 word by word: every prediction, every logit, sums in loops."""
    unit = torch.nn.functional.normalize
    videos = len(c) // 2
    p = unit(objective.clip_head(h), dim=-1).flatten(0, 1)
    q = unit(objective.target_head(x), dim=-1).flatten(0, 1)
    terms = [
        -(p[i] @ q[i] / 0.15) + torch.log(sum(torch.exp(p[i] @ q[j] / 0.15) for j in range(len(q))))
        for i in range(len(p))
        if masked.flatten()[i]
    ]
    clip_loss = sum(terms) / len(terms)
    s = unit(objective.set_head(c), dim=-1)
    first, second = s[:videos], s[videos:]
    both = []
    for anchors, others in ((first, second), (second, first)):
        both += [
            -(anchors[i] @ others[i] / 0.3)
            + torch.log(sum(torch.exp(anchors[i] @ others[j] / 0.3) for j in range(videos)))
            for i in range(videos)
        ]
    set_loss = sum(both) / len(both)
    return (2.0 * set_loss + 1.0 * clip_loss) / 3.0


def gradients(objective: Objective, loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*objective.parameters(), *leaves]))


def test_loss_and_every_gradient_equal_the_literal_formulas():
    objective = made()
    c, h, x, masked = inputs(5)
    leaves = [tensor.requires_grad_() for tensor in (c, h, x)]
    losses = objective(c, h, x, masked)
    expected = literal(objective, c, h, x, masked)
    assert abs(losses.loss - expected) / expected < 1e-9
    for ours, theirs in zip(
        gradients(objective, losses.loss, leaves), gradients(objective, expected, leaves), strict=True
    ):
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


def test_nothing_masked_is_a_zero_with_zero_gradients():
    objective = made()
    c, h, x, _ = inputs(3)
    losses = objective(c, h.requires_grad_(), x, torch.zeros(6, 4, dtype=torch.bool))
    assert losses.clip_loss == 0
    losses.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objective.parameters())
    assert h.grad is None or not h.grad.any()


def test_accuracy_is_one_for_perfect_and_chance_for_random_predictions():
    objective = made()
    objective.set_head = objective.clip_head = objective.target_head = torch.nn.Identity()
    x = torch.randn(20, 4, WIDTH, dtype=torch.float64)
    c = torch.randn(10, WIDTH, dtype=torch.float64).repeat(2, 1)
    everything = torch.ones(20, 4, dtype=torch.bool)
    perfect = objective(c, x, x, everything)
    assert (perfect.set_top1, perfect.clip_top1) == (1.0, 1.0)
    random = objective(torch.randn_like(c), torch.randn_like(x), x, everything)
    assert random.clip_top1 < 0.2
    assert random.clip_loss > math.log(20)


def _worker(rank: int, workers: int, file: str, queue: mp.SimpleQueue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=workers)
    try:
        objective = made()
        c, h, x, masked = inputs(8)
        share = 8 // workers
        videos = torch.arange(rank * share, (rank + 1) * share)
        rows = torch.cat([videos, videos + 8])
        losses = objective(c[rows], h[rows], x[rows], masked[rows])
        losses.loss.backward()
        flat = torch.cat([p.grad.flatten() for p in objective.parameters()])
        dist.all_reduce(flat)
        if rank == 0:
            queue.put([(flat / workers).tolist(), [float(losses.set_loss), float(losses.clip_loss)]])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_give_the_loss_and_gradients_of_one(workers, tmp_path):
    objective = made()
    losses = objective(*inputs(8))
    losses.loss.backward()
    expected = torch.cat([p.grad.flatten() for p in objective.parameters()])
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_worker, (workers, str(tmp_path / "rendezvous"), queue), nprocs=workers)
    flat, values = queue.get()
    assert values == pytest.approx([float(losses.set_loss), float(losses.clip_loss)], rel=1e-12)
    assert (torch.tensor(flat, dtype=torch.float64) - expected).norm() <= 1e-9 * expected.norm()
