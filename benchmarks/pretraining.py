"""The time of pretraining steps, compared with a plain transcription of the formulas, and of whole epochs.

    step     one step of the default setting (512 videos, sets of 8 of 16 clips, features 768 wide), forward, backward
             and optimiser, interleaved with the plain one: predictions at all positions, all logits built, explicit
             attention. Same weights, sets and masks; with dropout off the losses must be equal. `masked`: the same with
             only the masked clips as candidates.
    epoch    whole epochs from a store, with features in memory, on disk or streamed, compared with bare steps on one
             batch
    workers  one worker with two threads compared with two workers with one thread each, by gloo
    sets     the time of a step by the size of the sets, with 128 clips per video

Peak memory is that of a separate process that makes two steps.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import folder_of, parser, report
from pretraining_steps import CPU, batch_of, clips_of, gradients_of, make_store, plain_loss, trainer_of

from scale_ray.clip_sets import Batch, ResidentClips, open_source
from scale_ray.config import Ingest, ObjectiveOptions, PretrainConfig, Sets, Training
from scale_ray.pretraining import Trainer
from scale_ray.store import StoredClips

VARIANTS = ("plain", "ours", "masked")


def steps_of(variant: str, videos: int) -> tuple[Trainer, Batch, Callable[[], float]]:
    """A trainer, a batch, and a function that makes one step of the variant and returns the loss."""
    candidates = "masked" if variant == "masked" else "all"
    config = PretrainConfig(objective=ObjectiveOptions(candidates=candidates), training=Training(batch=videos))
    trainer = trainer_of(videos, 16, config)
    trainer.aggregator.train()
    batch = batch_of(trainer)

    def plain() -> float:
        trainer.optimizer.zero_grad()
        loss = plain_loss(trainer.aggregator, trainer.objective, batch)
        loss.backward()
        trainer.optimizer.step()
        return float(loss.detach())

    return trainer, batch, plain if variant == "plain" else lambda: float(trainer.step(batch)["loss"])


def relative_differences(videos: int) -> dict[str, float]:
    """Relative differences of loss and gradients from the plain transcription, with dropout off."""
    trainer, batch, _ = steps_of("ours", videos)
    trainer.aggregator.eval()

    tokens = trainer.aggregator(batch.features_SVD, batch.positions_SV7, batch.masked_SV)
    ours, our_gradients = gradients_of(trainer, trainer.objective(*tokens, batch.features_SVD, batch.masked_SV).loss)
    plain, plain_gradients = gradients_of(trainer, plain_loss(trainer.aggregator, trainer.objective, batch))
    differences = {
        "loss": abs(ours - plain) / plain,
        "gradients": float((our_gradients - plain_gradients).norm() / plain_gradients.norm()),
    }
    assert differences["loss"] < 1e-5, differences
    assert differences["gradients"] < 1e-4, differences
    return differences


def timed(function: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    function()
    return time.perf_counter() - began_s


def peak_mib(variant: str, videos: int) -> int:
    command = [sys.executable, __file__, "--peak-of", variant, "--batch", str(videos)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_step(videos: int, repeats: int) -> dict:
    differences = relative_differences(videos)
    steps = {variant: steps_of(variant, videos)[2] for variant in VARIANTS}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(repeats):
        for variant, step in steps.items():
            seconds[variant].append(timed(step))
        print({v: round(s[-1], 3) for v, s in seconds.items()}, file=sys.stderr, flush=True)
    ratios = {
        variant: [plain / other for plain, other in zip(seconds["plain"], seconds[variant], strict=True)]
        for variant in ("ours", "masked")
    }
    return {
        "relative difference of loss and gradients, dropout off": differences,
        "seconds": {variant: rounded(values) for variant, values in seconds.items()},
        "times faster than plain, each": {variant: rounded(values) for variant, values in ratios.items()},
        "times faster than plain, median": {v: round(statistics.median(r), 2) for v, r in ratios.items()},
        "peak memory, MiB": {variant: peak_mib(variant, videos) for variant in VARIANTS},
    }


def steps_on(trainer: Trainer, batch: Batch, count: int) -> None:
    for _ in range(count):
        trainer.step(batch)


def measure_epoch(folder: Path, videos: int, batch: int, repeats: int) -> dict:
    """Videos per second of whole epochs, and relative to that of bare steps on a batch in memory."""
    stored = StoredClips(make_store(folder / f"store-{videos}", videos, 16), "train")
    config = PretrainConfig(training=Training(batch=batch))
    figures: dict[str, dict] = {}
    for mode in ("memory", "disk", "stream"):
        options = Ingest(ingest=mode, cache=str(folder / "cache"), window_mib=16)
        trainer = Trainer(open_source(stored, options, CPU), config, device=CPU)
        ready = batch_of(trainer)
        trainer.step(ready)
        rates: dict[str, list[float]] = {"epoch": [], "bare": []}
        for _ in range(repeats):
            rates["bare"].append(videos / timed(partial(steps_on, trainer, ready, trainer.steps_per_epoch)))
            rates["epoch"].append(videos / timed(trainer.run_epoch))
        ratios = [epoch / bare for epoch, bare in zip(rates["epoch"], rates["bare"], strict=True)]
        figures[mode] = {
            "videos/s": {name: rounded(values) for name, values in rates.items()},
            "epoch over bare, each": rounded(ratios),
            "epoch over bare, median": round(statistics.median(ratios), 3),
        }
        print(mode, figures[mode], file=sys.stderr, flush=True)
    return figures


def _train_worker(rank: int, workers: int, rendezvous: str, videos: int, steps: int, result: str) -> None:
    torch.set_num_threads(2 // workers)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    trainer = trainer_of(videos, 16, PretrainConfig(training=Training(batch=videos)))
    batch = batch_of(trainer)
    trainer.step(batch)
    seconds = [timed(lambda: trainer.step(batch)) for _ in range(steps)]
    if rank == 0:
        Path(result).write_text(json.dumps(seconds))
    if workers > 1:
        dist.destroy_process_group()


def measure_workers(folder: Path, videos: int, repeats: int) -> dict:
    seconds: dict[str, list[float]] = {"1 worker, 2 threads": [], "2 workers, 1 thread each": []}
    for _ in range(repeats):
        for workers, name in enumerate(seconds, 1):
            rendezvous, result = folder / f"rendezvous-{time.time_ns()}", folder / "seconds.json"
            mp.spawn(_train_worker, (workers, str(rendezvous), videos, 2, str(result)), nprocs=workers)
            seconds[name] += json.loads(result.read_text())
    single_s, double_s = (statistics.median(values) for values in seconds.values())
    return {
        "seconds a step": {name: rounded(values) for name, values in seconds.items()},
        "two over one, speed": round(single_s / double_s, 3),
    }


def measure_sets(videos: int, repeats: int) -> dict:
    clips = ResidentClips.from_clips(clips_of(videos, 128), CPU)
    step_s = {}
    for size in (4, 8, 16, 32, 64):
        config = replace(PretrainConfig(), sets=Sets(set_size=size), training=Training(batch=videos))
        trainer = Trainer(clips, config, device=CPU)
        batch = batch_of(trainer)
        trainer.step(batch)
        step_s[str(size)] = round(statistics.median(timed(partial(trainer.step, batch)) for _ in range(repeats)), 3)
    return {"videos": videos, "seconds a step by set size": step_s}


def rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", default="step,epoch,workers,sets", help="cases to measure, separated by commas")
    arguments.add_argument("--repeats", type=int, default=5, help="repetitions of each, interleaved")
    arguments.add_argument("--batch", type=int, default=512, help="videos per batch")
    arguments.add_argument("--epoch-videos", type=int, default=2048, help="videos of the store for the case epoch")
    arguments.add_argument("--peak-of", choices=VARIANTS, help="only make two steps and print the peak memory in MiB")
    given = arguments.parse_args()
    torch.set_num_threads(2)
    if given.peak_of:
        _, _, step = steps_of(given.peak_of, given.batch)
        step(), step()
        # Not from getrusage: there, a child starts at the peak of its parent.
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(int(peak) // 1024)
        return
    with folder_of(given) as folder:
        cases = {
            "step": lambda: measure_step(given.batch, given.repeats),
            "epoch": lambda: measure_epoch(folder, given.epoch_videos, given.batch, given.repeats),
            "workers": lambda: measure_workers(folder, given.batch, max(given.repeats // 2, 1)),
            "sets": lambda: measure_sets(64, given.repeats),
        }
        for name in given.cases.split(","):
            report(f"pretraining_{name}", given, cases[name]())


if __name__ == "__main__":
    main()
