"""The objective against a literal transcription of its formulas, on one worker and on several."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from scale_ray.config import ObjectiveOptions
from scale_ray.pretraining.objective import Objective, Projections

OPTIONS = ObjectiveOptions(
    prediction_hidden=24,
    target_hidden=20,
    contrast_width=8,
    set_temperature=0.3,
    clip_temperature=0.15,
    set_weight=2.0,
    clip_weight=1.0,
)
VARIANTS = {
    "all candidates": OPTIONS,
    "masked candidates": replace(OPTIONS, candidates="masked"),
    "cosine": replace(OPTIONS, clip_objective="cosine"),
    "smooth l1": replace(OPTIONS, clip_objective="smooth_l1"),
    "sets alone": replace(OPTIONS, clip_weight=0.0),
    "clips alone": replace(OPTIONS, set_weight=0.0),
    "other groups": replace(OPTIONS, negatives="other_groups"),
    "other groups, masked candidates": replace(OPTIONS, negatives="other_groups", candidates="masked"),
}
GROUPS = [0, 0, 1, 2, 1, 0, 3]
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


def owners(options: ObjectiveOptions, videos: int) -> Tensor | None:
    """The group and the number of each video, if the groups matter."""
    return None if options.negatives == "all" else torch.tensor(list(zip(GROUPS[:videos], range(videos), strict=True)))


def objective_of(options: ObjectiveOptions = OPTIONS) -> Objective:
    torch.manual_seed(0)
    return Objective(FEATURES, WIDTH, options).double()


def literal(objective: Objective, c: Tensor, h: Tensor, x: Tensor, masked: Tensor) -> Tensor:
    """Section 4 of the paper, literally: every prediction, every logit, sums in loops."""
    options = objective.options
    unit = torch.nn.functional.normalize
    videos = len(c) // 2
    masked_rows = [i for i in range(masked.numel()) if masked.flatten()[i]]

    def is_negative(video: int, other: int) -> bool:
        return options.negatives == "all" or video == other or GROUPS[video] != GROUPS[other]

    def video_of(row: int) -> int:
        return row // masked.shape[1] % videos

    clip_loss = set_loss = torch.zeros((), dtype=torch.float64)
    if options.clip_weight:
        predicted, features = objective.clip_head(h).flatten(0, 1), x.flatten(0, 1)
        terms = []
        if options.clip_objective == "cosine":
            terms = [1 - predicted[i] @ features[i] / (predicted[i].norm() * features[i].norm()) for i in masked_rows]
        elif options.clip_objective == "smooth_l1":
            for i in masked_rows:
                target = (features[i] - features[i].mean()) / (features[i].var(unbiased=False) + 1e-5).sqrt()
                distance = (predicted[i] - target).abs()
                terms.append(torch.where(distance < 1, 0.5 * distance**2, distance - 0.5).mean())
        else:
            p, q = unit(predicted, dim=-1), unit(objective.target_head(features), dim=-1)
            others = masked_rows if options.candidates == "masked" else range(len(q))
            terms = [
                -(p[i] @ q[i] / 0.15)
                + torch.log(sum(torch.exp(p[i] @ q[j] / 0.15) for j in others if is_negative(video_of(i), video_of(j))))
                for i in masked_rows
            ]
        clip_loss = sum(terms) / len(terms)
    if options.set_weight:
        s = unit(objective.set_head(c), dim=-1)
        first, second = s[:videos], s[videos:]
        terms = []
        for anchors, others in ((first, second), (second, first)):
            terms += [
                -(anchors[i] @ others[i] / 0.3)
                + torch.log(sum(torch.exp(anchors[i] @ others[j] / 0.3) for j in range(videos) if is_negative(i, j)))
                for i in range(videos)
            ]
        set_loss = sum(terms) / len(terms)
    total = options.set_weight + options.clip_weight
    return (options.set_weight * set_loss + options.clip_weight * clip_loss) / total


def gradients(objective: Objective, loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    tensors = [*objective.parameters(), *leaves]
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(tensors, grads, strict=True)]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_loss_and_every_gradient_equal_the_literal_formulas(options):
    objective = objective_of(options)
    c, h, x, masked = inputs(5)
    # The target of a regression is the stored feature, which has no gradient.
    leaves = [tensor.requires_grad_() for tensor in ((c, h, x) if options.clip_objective == "contrast" else (c, h))]
    losses = objective(c, h, x, masked, owners(options, 5))
    expected = literal(objective, c, h, x, masked)
    assert abs(losses.loss - expected) / expected < 1e-9
    assert losses.mean_loss == losses.loss
    for ours, theirs in zip(
        gradients(objective, losses.loss, leaves), gradients(objective, expected, leaves), strict=True
    ):
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_batch_in_parts_is_the_batch(options):
    objective = objective_of(options)
    c, h, x, masked = inputs(5)
    all_owners = owners(options, 5)
    whole = objective(c, h, x, masked, all_owners)
    rows_of_parts = [torch.tensor([0, 1, 5, 6]), torch.tensor([2, 3, 4, 7, 8, 9])]
    owners_of_parts = (None, None) if all_owners is None else (all_owners[:2], all_owners[2:])
    parts = [
        objective.project(c[rows], h[rows], x[rows], masked[rows], part_owners)
        for rows, part_owners in zip(rows_of_parts, owners_of_parts, strict=True)
    ]
    joined = objective.losses(Projections.joined(parts))
    torch.testing.assert_close(vars(joined), vars(whole), rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_nothing_masked_is_a_zero_with_zero_gradients(options):
    objective = objective_of(options)
    c, h, x, _ = inputs(3)
    losses = objective(c, h.requires_grad_(), x, torch.zeros(6, 4, dtype=torch.bool), owners(options, 3))
    assert losses.clip_loss == 0
    losses.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objective.parameters())
    assert h.grad is None or not h.grad.any()


def test_accuracy_is_one_for_perfect_and_chance_for_random_predictions():
    objective = objective_of()
    objective.set_head = objective.clip_head = objective.target_head = torch.nn.Identity()
    x = torch.randn(20, 4, WIDTH, dtype=torch.float64)
    c = torch.randn(10, WIDTH, dtype=torch.float64).repeat(2, 1)
    all_masked = torch.ones(20, 4, dtype=torch.bool)
    perfect = objective(c, x, x, all_masked)
    assert (perfect.set_top1, perfect.clip_top1) == (1.0, 1.0)
    random = objective(torch.randn_like(c), torch.randn_like(x), x, all_masked)
    assert random.clip_top1 < 0.2
    assert random.clip_loss > math.log(20)


def test_videos_of_one_group_are_not_confused_with_each_other():
    objective = objective_of(replace(OPTIONS, negatives="other_groups"))
    objective.set_head = torch.nn.Identity()
    # Two groups of two equal videos: within a group the sets cannot be told apart.
    tokens = torch.eye(WIDTH, dtype=torch.float64)[[0, 0, 1, 1]].repeat(2, 1)
    assert objective.set_top1(tokens) == 0.5
    assert objective.set_top1(tokens, torch.tensor([[7, 0], [7, 1], [8, 2], [8, 3]])) == 1.0


def _worker(rank: int, workers: int, folder: Path) -> None:
    """All variants on seven videos: the workers have unequal numbers of videos and of masked clips."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    try:
        results = []
        for options in VARIANTS.values():
            objective = objective_of(options)
            c, h, x, masked = inputs(7)
            videos = torch.arange(rank * 7 // workers, (rank + 1) * 7 // workers)
            rows = torch.cat([videos, videos + 7])
            all_owners = owners(options, 7)
            losses = objective(
                c[rows], h[rows], x[rows], masked[rows], None if all_owners is None else all_owners[videos]
            )
            losses.loss.backward()
            flat = torch.cat([p.grad.flatten() for p in objective.parameters()])
            dist.all_reduce(flat)
            results.append((flat / workers, [float(losses.mean_loss), float(losses.clip_top1)]))
        if rank == 0:
            torch.save(results, folder / "results.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_give_the_loss_and_gradients_of_one(workers, tmp_path):
    mp.spawn(_worker, (workers, tmp_path), nprocs=workers)
    for options, (flat, values) in zip(VARIANTS.values(), torch.load(tmp_path / "results.pt"), strict=True):
        objective = objective_of(options)
        losses = objective(*inputs(7), owners(options, 7))
        losses.loss.backward()
        expected = torch.cat([p.grad.flatten() for p in objective.parameters()])
        assert values == pytest.approx([float(losses.mean_loss), float(losses.clip_top1)], rel=1e-12)
        assert (flat - expected).norm() <= 1e-9 * expected.norm()
