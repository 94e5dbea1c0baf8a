"""Probes on the device: k-NN and the grid of linear probes, on 100,000 videos of 768 numbers and 400 classes.

The probes take their tensors' device. The plain alternatives are the same probes on the CPU, a k-NN that scatters its
votes into classes, and one linear probe after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_parts.measure import Bench, rounded
from scale_ray.config import Probing
from scale_ray.probes import CLASSES
from scale_ray.probes.fitting import Problem, Setting, TrainingSchedule, fit_heads
from scale_ray.probes.heads import LinearHead
from scale_ray.probes.knn import knn_scores
from scale_ray.probes.targets import Targets

WIDTH = 768


@dataclass(frozen=True)
class Sizes:
    videos: int
    classes: int
    queries_on_cpu: int


def sizes(bench: Bench) -> Sizes:
    return Sizes(400, 5, 40) if bench.tiny else Sizes(100_000, 400, 2_000)


def vectors_of(bench: Bench) -> tuple[Tensor, Tensor]:
    """Vectors at unit norm around overlapping centres, float32 (videos, 768), and their classes, on the CPU."""
    size = sizes(bench)
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(size.classes, (size.videos,), generator=generator)
    centres = torch.randn(size.classes, WIDTH, generator=generator)
    noise = torch.randn(size.videos, WIDTH, generator=generator)
    return F.normalize(centres[classes] + 4 * noise, dim=1), classes


def plain_knn(bank: Tensor, classes: Tensor, queries: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Scores (queries, classes), 4,096 queries at once."""
    parts = []
    for block in queries.split(4096):
        cosine, nearest = (block @ bank.T).topk(k, dim=1)
        weights = ((cosine - cosine[:, :1]) / temperature).exp()
        scores = torch.zeros(len(block), num_classes, device=bank.device)
        parts.append(scores.scatter_add_(1, classes[nearest], weights / weights.sum(1, keepdim=True)))
    return torch.cat(parts)


def knn(bench: Bench) -> dict[str, float]:
    """Queries per second, and how many queries get the same class on CPU and device."""
    vectors, classes = vectors_of(bench)
    size, probing = sizes(bench), Probing()
    num_queries = size.videos // 5
    targets = F.one_hot(classes, size.classes).float()
    bank, bank_targets, queries = vectors[num_queries:], targets[num_queries:], vectors[:num_queries]
    few = queries[: size.queries_on_cpu]
    settings = probing.knn_k, probing.knn_temperature
    first = (probing.knn_k[0], probing.knn_temperature[0])
    cpu = Bench(torch.device("cpu"), True, bench.folder, bench.send)
    on_cpu = knn_scores(bank, bank_targets, few, *settings)[first]
    cpu_s = cpu.seconds_of(lambda: knn_scores(bank, bank_targets, few, *settings))
    bank, bank_targets, queries, few = (tensor.to(bench.device) for tensor in (bank, bank_targets, queries, few))
    bank_classes = classes[num_queries:].to(bench.device)
    on_device = knn_scores(bank, bank_targets, few, *settings)[first].cpu()
    plainly = plain_knn(bank, bank_classes, few, *first, size.classes).cpu()
    device_s = bench.seconds_of(lambda: knn_scores(bank, bank_targets, queries, *settings))
    plain_s = bench.seconds_of(lambda: plain_knn(bank, bank_classes, queries, *first, size.classes))
    return {
        "CPU, queries/s": rounded(len(few) / cpu_s),
        "device, queries/s": rounded(num_queries / device_s),
        "plain on the device, one setting, queries/s": rounded(num_queries / plain_s),
        "same class as on the CPU": rounded(float((on_device.argmax(1) == on_cpu.argmax(1)).float().mean())),
        "plain, same class as on the CPU": rounded(float((plainly.argmax(1) == on_cpu.argmax(1)).float().mean())),
    }


class OneVector:
    """The inputs of a probe of one vector per video."""

    num_clips = 1

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def whole(self, rows: Tensor) -> Tensor:
        return self._vectors[rows][:, None].clone()

    def drawn(self, rows: Tensor, set_size: int, seed: int, epoch: int) -> Tensor:
        return self.whole(rows)


def linear_grid(bench: Bench, device: torch.device) -> dict[str, float]:
    """Seconds of an epoch of all settings at once and one after the other, and the highest top-1 on the same videos."""
    vectors, classes = (tensor.to(device) for tensor in vectors_of(bench))
    size, probing = sizes(bench), Probing()
    rows = torch.arange(size.videos)
    names = [str(number) for number in range(size.classes)]
    mean, std = vectors.mean(0), vectors.std(0)
    problem = Problem(OneVector(vectors), classes, Targets(CLASSES, names, {}), mean, 1 / std)
    settings = [Setting(rate, decay) for rate in probing.learning_rates for decay in probing.weight_decays]
    schedule = TrainingSchedule(
        batch=probing.probe_batch,
        set_size=1,
        epochs=1,
        min_steps=1,
        num_draws=1,
        warmup_share=probing.probe_warmup_share,
    )
    on_device = Bench(device, True, bench.folder, bench.send)  # one repetition: an epoch takes seconds

    def fit(chosen: list[Setting]) -> object:
        return fit_heads(problem, rows, lambda: LinearHead(WIDTH, size.classes).to(device), chosen, schedule, 0)

    def one_by_one() -> None:
        for setting in settings:
            fit([setting])

    fitted = fit_heads(problem, rows, lambda: LinearHead(WIDTH, size.classes).to(device), settings, schedule, 0)
    top1 = [
        float((scores.argmax(1) == classes[:1000]).float().mean())
        for scores in fitted.scores(problem.inputs, rows[:1000])
    ]
    grid_s = on_device.seconds_of(lambda: fit(settings))
    each_s = on_device.seconds_of(one_by_one)
    return {
        "settings": len(settings),
        "all at once, s": rounded(grid_s),
        "one after the other, s": rounded(each_s),
        "times as fast": rounded(each_s / grid_s, 3),
        "top-1 of the best setting": rounded(max(top1)),
    }


def run(bench: Bench) -> None:
    bench.record(("k-NN",), knn, bench)
    bench.record(("linear grid, one epoch", "device"), linear_grid, bench, bench.device)
    if bench.on_gpu:
        bench.record(("linear grid, one epoch", "CPU"), linear_grid, bench, torch.device("cpu"))
