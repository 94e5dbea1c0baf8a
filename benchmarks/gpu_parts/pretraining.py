"""Steps and epochs of pretraining: 512 videos, sets of 8 of 16 clips, features 768 and 2,048 wide.

The plain alternative is a transcription of the formulas: explicit attention, predictions at all positions, all logits.
`fixed` is what a step could be if it never had to wait: the number of masked clips and their rows are known before,
and only they are predicted. It and the plain step can be captured as a CUDA graph; the step that ships cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from pretraining_steps import batch_of, make_store, plain_loss, plain_set_loss, trainer_of
from torch import Tensor
from torch.nn import functional as F

from gpu_parts.measure import NO_GPU, Bench, float32_products, relative, rounded
from scale_ray.clip_sets import Batch, open_source
from scale_ray.config import Ingest, PretrainConfig, Sets, Training
from scale_ray.pretraining import Trainer
from scale_ray.store import StoredClips

WIDTHS = (768, 2048)
MASKED = 2
PLAIN = "plain, float32, exact"
Loss = Callable[[], Tensor]


def trainer_for(bench: Bench, width: int, precision: str = "float32", *, compiled: bool = False) -> Trainer:
    """A trainer in the setting of this benchmark; with `tiny` a small one."""
    training = Training(batch=8 if bench.tiny else 512, train_precision=precision, compile=compiled)
    config = PretrainConfig(sets=Sets(masked_clips=MASKED), training=training)
    trainer = trainer_of(8 if bench.tiny else 512, 16, config, width=width, device=bench.device)
    trainer.aggregator.train()
    return trainer


def shipped_step(trainer: Trainer, batch: Batch) -> Callable[[], object]:
    """One step of the real trainer."""
    return lambda: trainer.step(batch)


def plain_of(trainer: Trainer, batch: Batch) -> Loss:
    """The loss by the transcription of the formulas."""
    return lambda: plain_loss(trainer.aggregator, trainer.objective, batch)


def fixed_of(trainer: Trainer, batch: Batch) -> Loss:
    """The loss with the rows of the masked clips known before: the same value, and no wait for the GPU."""
    rows = masked_rows(batch)

    def loss() -> Tensor:
        objective = trainer.objective
        c, h = trainer.aggregator(batch.features_SVD, batch.positions_SV7, batch.masked_SV)
        predicted = F.normalize(objective.clip_head(h.flatten(0, 1)[rows]).float(), dim=-1)
        targets = F.normalize(objective.target_head(batch.features_SVD.flatten(0, 1)).float(), dim=-1)
        logits = predicted @ targets.T / objective.options.clip_temperature
        return (plain_set_loss(objective, c) + F.cross_entropy(logits, rows)) / 2

    return loss


def masked_rows(batch: Batch) -> Tensor:
    """Rows of the masked clips among all clips, of a batch in which every set has `MASKED` of them."""
    sets = torch.arange(len(batch.masked_SV), device=batch.masked_SV.device)[:, None]
    clips = batch.masked_SV.int().argsort(dim=1, descending=True, stable=True)[:, :MASKED]
    return (sets * batch.masked_SV.shape[1] + clips).flatten()


def own_step(trainer: Trainer, loss: Loss, device: torch.device, *, bfloat16: bool) -> Callable[[], None]:
    """A step on another loss, with an optimiser that can be captured."""
    optimizer = torch.optim.AdamW(trainer.parameters, lr=5e-4, fused=True, capturable=device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        # Without the cache of converted weights, which a captured graph would hold on to.
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, after warming up on a stream of its own, as capturing requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measured(make_step: Callable[[], Callable[[], object]], bench: Bench, products: str = "default") -> dict:
    """Milliseconds and peak memory of a step that is made here, so that its memory is freed afterwards."""
    with float32_products(products):
        step = make_step()
        return {"ms": rounded(1000 * bench.seconds_of(step)), "peak MiB": bench.peak_mib(step)}


def steps_of(bench: Bench, width: int) -> dict[str, tuple[str, Callable[[], Callable[[], object]]]]:
    """What makes each variant of a step, with the way in which float32 products are computed."""

    def shipped(precision: str) -> Callable[[], object]:
        trainer = trainer_for(bench, width, precision)
        return shipped_step(trainer, batch_of(trainer))

    def own(
        make_loss: Callable[[Trainer, Batch], Loss], *, bfloat16: bool, capture: bool = False
    ) -> Callable[[], object]:
        trainer = trainer_for(bench, width)
        step = own_step(trainer, make_loss(trainer, batch_of(trainer)), bench.device, bfloat16=bfloat16)
        return captured(step) if capture else step

    return {
        PLAIN: ("exact", partial(own, plain_of, bfloat16=False)),
        "plain, bfloat16": ("default", partial(own, plain_of, bfloat16=True)),
        "ships, float32, exact": ("exact", partial(shipped, "float32")),
        "ships, TF32": ("tf32", partial(shipped, "float32")),
        "ships, bfloat16": ("default", partial(shipped, "bfloat16")),
        "fixed, bfloat16": ("default", partial(own, fixed_of, bfloat16=True)),
        "plain, bfloat16, captured": ("default", partial(own, plain_of, bfloat16=True, capture=True)),
        "fixed, bfloat16, captured": ("default", partial(own, fixed_of, bfloat16=True, capture=True)),
    }


def times_as_fast(steps: dict[str, dict | str]) -> dict[str, float]:
    rates = {name: 1 / step["ms"] for name, step in steps.items() if isinstance(step, dict)}
    return relative(rates, PLAIN)


def synchronisations(bench: Bench, width: int) -> dict | str:
    """Waits for the GPU in one real step, and in drawing a batch."""
    trainer = trainer_for(bench, width, "bfloat16")
    batch = batch_of(trainer)
    trainer.step(batch)
    rows = torch.arange(len(batch.videos.rows_B), device=bench.device)
    source = trainer.source
    return {
        "step": bench.synchronisations(lambda: trainer.step(batch)),
        "drawing a batch": bench.synchronisations(lambda: source.draw(rows, trainer.config.sets, seed=0, epoch=0)),
    }


def epochs_against_steps(bench: Bench, mode: str) -> dict:
    """Videos per second of epochs and of bare steps on one batch, with `mode` as the ingest."""
    videos, batch = (64, 16) if bench.tiny else (10_240, 512)
    stored = StoredClips(make_store(bench.folder / "clips", videos, 16), "train")
    options = Ingest(ingest=mode, cache=str(bench.folder / "cache"), window_mib=1 if bench.tiny else 64)
    source = open_source(stored, options, bench.device)
    trainer = Trainer(source, PretrainConfig(training=Training(batch=batch)), device=bench.device)
    ready = batch_of(trainer)

    def bare() -> None:
        for _ in range(trainer.steps_per_epoch):
            trainer.step(ready)

    bare_s, epoch_s = bench.seconds_of(bare), bench.seconds_of(trainer.run_epoch)
    return {
        "bare steps, videos/s": rounded(videos / bare_s),
        "epoch, videos/s": rounded(videos / epoch_s),
        "epoch over bare": rounded(bare_s / epoch_s, 3),
        "share of an epoch's time that the GPU is busy": bench.busy_share(trainer.run_epoch),
    }


def run(bench: Bench) -> None:
    for width in WIDTHS:
        steps = {}
        for name, (products, make_step) in steps_of(bench, width).items():
            if "captured" in name and not bench.on_gpu:
                steps[name] = bench.record((f"D {width}", "step", name), lambda: NO_GPU)
            else:
                steps[name] = bench.record((f"D {width}", "step", name), measured, make_step, bench, products)
        bench.record((f"D {width}", f"times as fast as {PLAIN}"), times_as_fast, steps)
        bench.record((f"D {width}", "synchronisations"), synchronisations, bench, width)
    for mode in ("memory", "disk", "stream"):
        bench.record(("epoch", mode), epochs_against_steps, bench, mode)


def run_compiled(bench: Bench) -> None:
    """The real step with `compile`, which the CPU's tiny run leaves to the test of the trainer."""
    if bench.tiny:
        bench.record(("step",), lambda: "not measured: a tiny run does not compile")
        return
    for width in WIDTHS:
        bench.record((f"D {width}",), compiled_step, bench, width)


def compiled_step(bench: Bench, width: int) -> dict[str, float]:
    def step_ms(*, compiled: bool) -> float:
        trainer = trainer_for(bench, width, "bfloat16", compiled=compiled)
        return rounded(1000 * bench.seconds_of(shipped_step(trainer, batch_of(trainer))))

    eager_ms, compiled_ms = step_ms(compiled=False), step_ms(compiled=True)
    torch.compiler.reset()
    return {"eager, ms": eager_ms, "compiled, ms": compiled_ms, "times as fast": rounded(eager_ms / compiled_ms, 3)}
