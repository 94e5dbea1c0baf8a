from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from scale_ray.clip_sets.sources import ResidentClips
from scale_ray.config import AggregatorOptions, ObjectiveOptions, PretrainConfig, Sets, Training
from scale_ray.errors import RunFailed, UserError
from scale_ray.pretraining.trainer import Trainer, final_weights, fit
from scale_ray.store.clip_reader import ClipFeatures

CPU = torch.device("cpu")
METRICS = ("loss", "set_loss", "clip_loss", "set_top1", "clip_top1", "position_top1")


def config(dropout: float = 0.1, **training) -> PretrainConfig:
    return PretrainConfig(
        sets=Sets(set_size=3, mask_ratio=0.3),
        aggregator=AggregatorOptions(width=32, layers=1, dropout=dropout),
        objective=ObjectiveOptions(prediction_hidden=32, target_hidden=32, contrast_width=16),
        training=Training(**{"epochs": 6, "batch": 8, "learning_rate": 1e-3} | training),
    )


def clips(videos: int = 20, clips: int = 8, first: int = 0) -> ClipFeatures:
    """Clips of one video are similar, so that both losses can be learnt."""
    rng = np.random.default_rng(first)
    features = rng.normal(size=(videos, 1, 10)) + 0.3 * rng.normal(size=(videos, clips, 10))
    return ClipFeatures(
        [str(first + number) for number in range(videos)],
        features.astype(np.float16),
        rng.random((videos, clips, 7), dtype=np.float32),
    )


def resident_clips(videos: int = 20, first: int = 0, clips_of_video: int = 8) -> ResidentClips:
    return ResidentClips.from_clips(clips(videos, clips_of_video, first), CPU)


def trainer_of(setting: PretrainConfig, videos: int = 20, **options) -> Trainer:
    return Trainer(resident_clips(videos), setting, device=CPU, **options)


class History:
    """Collects the metrics of a training; raises an error, like a crash, after `crash_at` steps."""

    def __init__(self, crash_at: int = -1) -> None:
        self.losses: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self.crash_at = crash_at

    def after_step(self, trainer, values) -> None:
        self.losses.append(float(values["loss"]))
        if trainer.steps == self.crash_at:
            raise InterruptedError

    def after_epoch(self, trainer, metrics) -> None:
        self.epochs.append(
            {name: value for name, value in metrics.items() if "_per_s" not in name and name != "memory_mib"}
        )


def history_of(trainer: Trainer) -> History:
    history = History()
    fit(trainer, history)
    return history


def test_the_loss_falls_and_the_contrast_is_learnt():
    epochs = history_of(trainer_of(config(epochs=60))).epochs
    assert epochs[-1]["loss"] < 0.75 * epochs[0]["loss"]
    assert epochs[-1]["set_top1"] > 0.8
    assert [row["epoch"] for row in epochs] == list(range(1, 61))


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first = history_of(trainer_of(config())).losses
    assert first == history_of(trainer_of(config())).losses
    assert first != history_of(trainer_of(config(seed=1))).losses


@pytest.mark.parametrize("crash_at", [3, 4, 7], ids=lambda step: f"after step {step}")
def test_a_resumed_run_equals_an_undisturbed_one(crash_at, tmp_path):
    """Within an epoch and between epochs, with a moving average and early stopping."""
    setting = config(batch=5, ema_decay=0.9, held_out_share=0.5, patience=5, monitor_epochs=1)
    undisturbed = history_of(trainer_of(setting, held_out=resident_clips(6, first=100)))
    crashed, before = trainer_of(setting, held_out=resident_clips(6, first=100)), History(crash_at)
    with pytest.raises(InterruptedError):
        fit(crashed, before)
    torch.save(crashed.state(), tmp_path / "state.pt")
    torch.manual_seed(99)
    resumed = trainer_of(setting, held_out=resident_clips(6, first=100))
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    after = history_of(resumed)
    assert before.losses + after.losses == undisturbed.losses
    assert before.epochs + after.epochs == undisturbed.epochs


@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_a_batch_in_parts_gives_the_same_loss_and_gradients(accumulate):
    def gradients(**training) -> tuple[float, torch.Tensor]:
        trainer = trainer_of(config(dropout=0.0, batch=7, **training))
        [batch, *_] = trainer.source.batches(trainer.worker_slice, trainer.config.sets, seed=0, epoch=0, first_step=0)
        loss = trainer.step(batch)["loss"]
        return float(loss), torch.cat([p.grad.flatten() for p in trainer.parameters])

    (loss, whole), (loss_of_parts, parts) = gradients(), gradients(accumulate=accumulate)
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)
    assert (parts - whole).norm() < 1e-5 * whole.norm()


def test_a_part_is_dropped_out_alike_when_it_comes_again():
    """Otherwise the gradients would not belong to the loss."""
    first, second = (history_of(trainer_of(config(dropout=0.5, accumulate=3))).losses for _ in range(2))
    assert first == second
    trainer = trainer_of(config(dropout=0.5))
    [batch, *_] = trainer.source.batches(trainer.worker_slice, trainer.config.sets, seed=0, epoch=0, first_step=0)
    first, again, second = (trainer._seeded(batch, part).first_BC for part in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def _worker(rank: int, workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    try:
        setting = config(dropout=0.0, batch=7, held_out_share=0.5, monitor_epochs=2)
        history = history_of(trainer_of(setting, held_out=resident_clips(5, first=100)))
        broken = clips(8)
        broken.features[5, :] = np.nan
        with pytest.raises(RunFailed) as failed:
            fit(Trainer(ResidentClips.from_clips(broken, CPU), config(batch=8), device=CPU), History())
        if rank == 0:
            torch.save([history.losses, history.epochs, str(failed.value)], folder / "results.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_train_as_one_does(workers, tmp_path):
    """A batch of seven, so that the workers' slices differ in size."""
    setting = config(dropout=0.0, batch=7, held_out_share=0.5, monitor_epochs=2)
    alone = history_of(trainer_of(setting, held_out=resident_clips(5, first=100)))
    mp.spawn(_worker, (workers, tmp_path), nprocs=workers)
    losses, epochs, failure = torch.load(tmp_path / "results.pt", weights_only=True)
    named = failure.partition("the batch's videos: ")[2].split(", ")
    assert sorted(named) == list("01234567"), "the videos of all workers are named, including the broken one"
    assert losses == pytest.approx(alone.losses, rel=1e-5)
    for ours, theirs in zip(epochs, alone.epochs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_moving_average_follows_the_weights_and_is_what_is_kept():
    trainer = trainer_of(config(ema_decay=0.5, epochs=1, batch=20))
    before = trainer.aggregator.embed.weight.detach().clone()
    fit(trainer, History())
    after = trainer.aggregator.embed.weight
    kept = final_weights(trainer.state(), trainer.config)["embed.weight"]
    # The first update of torch's moving average copies the weights; the second one averages.
    torch.testing.assert_close(kept, after)
    trainer = trainer_of(config(ema_decay=0.5, epochs=2, batch=20))
    assert torch.equal(trainer.aggregator.embed.weight, before)
    steps = []
    trainer.run_epoch(lambda _: steps.append(trainer.aggregator.embed.weight.detach().clone()))
    trainer.run_epoch(lambda _: steps.append(trainer.aggregator.embed.weight.detach().clone()))
    kept = final_weights(trainer.state(), trainer.config)["embed.weight"]
    torch.testing.assert_close(kept, 0.5 * steps[0] + 0.5 * steps[1])


def test_training_stops_when_validation_does_not_gain_and_the_best_weights_are_kept():
    setting = config(epochs=400, held_out_share=0.5, patience=3, monitor_epochs=1, learning_rate=0.02)
    trainer = trainer_of(setting, held_out=resident_clips(6, first=100))
    epochs = history_of(trainer).epochs
    validation_losses = [row["validation_loss"] for row in epochs]
    best = int(np.argmin(validation_losses))
    assert len(validation_losses) == best + 1 + 3 < 400
    assert trainer.best["epoch"] == best + 1
    again = trainer_of(setting)
    for _ in range(best + 1):
        again.run_epoch()
    torch.testing.assert_close(final_weights(trainer.state(), setting), dict(again.aggregator.state_dict()))


def test_validation_is_the_same_each_time_and_changes_nothing():
    trainer = trainer_of(config(held_out_share=0.5), held_out=resident_clips(9, first=100))
    first, second = trainer.validate(), trainer.validate()
    assert first == second
    assert set(first) == {f"validation_{name}" for name in METRICS}
    undisturbed = history_of(trainer_of(config()))
    assert history_of(trainer).losses == undisturbed.losses


def test_what_the_positions_alone_tell_is_logged():
    """Once per epoch, of its first batch, with the weights at that time; the features do not matter."""
    setting = config(epochs=1, batch=6)
    trainer = trainer_of(setting)
    [batch, *_] = trainer.source.batches(trainer.worker_slice, setting.sets, seed=0, epoch=0, first_step=0)
    with torch.no_grad():
        masked = torch.ones_like(batch.masked_SV)
        tokens, _ = trainer.aggregator.eval()(torch.zeros_like(batch.features_SVD), batch.positions_SV7, masked)
        first, second = torch.nn.functional.normalize(trainer.objective.set_head(tokens), dim=1).chunk(2)
    similar = first @ second.T
    hits = [int(row.argmax()) == number % 6 for number, row in enumerate([*similar, *similar.T])]
    [epoch] = history_of(trainer).epochs
    assert epoch["position_top1"] == pytest.approx(sum(hits) / 12)
    assert 0 < sum(hits) < 12
    # Without any position all sets are the same to the aggregator.
    blind = replace(setting, sets=replace(setting.sets, position_dropout=1 - 1e-9))
    assert history_of(trainer_of(blind)).epochs[0]["position_top1"] == pytest.approx(1 / 6)


def test_a_training_without_negatives_of_the_own_group_needs_the_groups():
    others = replace(config(), objective=replace(config().objective, negatives="other_groups"))
    groups = {str(number): f"group-{number // 4}" for number in range(20)}
    with_groups = ResidentClips.from_clips(clips(), CPU, groups)
    epochs = history_of(Trainer(with_groups, others, device=CPU)).epochs
    assert epochs[0]["set_loss"] < history_of(trainer_of(config())).epochs[0]["set_loss"], "there are fewer negatives"
    parts = replace(others, training=replace(others.training, accumulate=3))
    in_parts = history_of(
        Trainer(with_groups, replace(parts, aggregator=replace(parts.aggregator, dropout=0.0)), device=CPU)
    )
    whole = history_of(
        Trainer(with_groups, replace(others, aggregator=replace(others.aggregator, dropout=0.0)), device=CPU)
    )
    assert in_parts.losses == pytest.approx(whole.losses, rel=1e-4)
    with pytest.raises(AssertionError, match="knows the groups"):
        history_of(trainer_of(others))


def test_patience_needs_something_to_judge_by():
    with pytest.raises(UserError, match="patience: expected --held-out-share"):
        Training(patience=3)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_videos():
    broken = clips(6)
    broken.features[4, :] = np.nan
    trainer = Trainer(ResidentClips.from_clips(broken, CPU), config(batch=2), device=CPU)
    with pytest.raises(RunFailed, match=r"the loss is nan at step \d, in epoch 1; the batch's videos: (4, \d|\d, 4)$"):
        fit(trainer, History())


def test_gradients_are_clipped_to_the_norm_that_is_asked_for():
    trainer = trainer_of(config(gradient_clip=0.01))
    [batch, *_] = trainer.source.batches(trainer.worker_slice, trainer.config.sets, seed=0, epoch=0, first_step=0)
    reported_norm = trainer.step(batch)["gradient_norm"]
    norm = torch.cat([p.grad.flatten() for p in trainer.parameters]).norm()
    assert reported_norm > 0.1
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_learns_the_same_and_leaves_float32_weights():
    full, half = (history_of(trainer_of(config(epochs=20, train_precision=kind))) for kind in ("float32", "bfloat16"))
    assert half.losses != full.losses
    assert half.losses[0] == pytest.approx(full.losses[0], rel=0.02)
    assert half.epochs[-1]["loss"] < 0.97 * half.epochs[0]["loss"]
    trainer = trainer_of(config(train_precision="bfloat16"))
    trainer.run_epoch()
    assert {p.dtype for p in trainer.parameters} == {torch.float32}


def test_only_the_metrics_of_the_objective_are_reported():
    regression = replace(config(), objective=ObjectiveOptions(clip_objective="cosine", prediction_hidden=16))
    epochs = history_of(Trainer(resident_clips(), regression, device=CPU)).epochs
    assert "clip_top1" not in epochs[0]
    assert epochs[-1]["clip_loss"] < epochs[0]["clip_loss"]
    alone = replace(config(), objective=replace(config().objective, clip_weight=0.0))
    assert "clip_loss" not in history_of(Trainer(resident_clips(), alone, device=CPU)).epochs[0]


def test_only_matrices_decay():
    trainer = trainer_of(config())
    decayed, kept = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 1e-4
    assert kept["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    names = {name for name, p in trainer.aggregator.named_parameters() if any(p is q for q in kept["params"])}
    assert {"mask_token", "set_token", "norm.weight", "embed.bias"} <= names
    assert len(decayed["params"]) + len(kept["params"]) == len(trainer.parameters)


def test_the_batch_is_at_most_the_number_of_videos():
    trainer = trainer_of(config(batch=512))
    assert (trainer.worker_slice.batch_size, trainer.steps_per_epoch) == (20, 1)
    assert trainer_of(config(batch=8)).steps_per_epoch == 2


def test_too_few_clips_or_videos_are_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"expected at most 2, half of the 5 clips .* found 3"):
        Trainer(resident_clips(clips_of_video=5), config(), device=CPU)
    with pytest.raises(UserError, match="expected at least 2 training videos in the store, found 1"):
        trainer_of(config(), videos=1)
