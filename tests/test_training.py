import math

import numpy as np
import pytest
import torch

from scale_ray.config import AggregatorOptions, ObjectiveOptions, PretrainConfig, Sets, Training
from scale_ray.errors import UserError
from scale_ray.store import ClipFeatures
from scale_ray.training import Trainer, TrainingData, fit, warmup_then_cosine

CPU = torch.device("cpu")


def config(**training) -> PretrainConfig:
    return PretrainConfig(
        Sets(set_size=3, mask_ratio=0.3),
        AggregatorOptions(width=32, layers=1),
        ObjectiveOptions(prediction_hidden=32, target_hidden=32, contrast_width=16),
        Training(**{"epochs": 6, "batch": 8, "learning_rate": 1e-3} | training),
    )


def data(videos: int = 20, clips: int = 8) -> TrainingData:
    """Clips of a video are alike: what the losses ask for can be learnt."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(videos, 1, 10)) + 0.3 * rng.normal(size=(videos, clips, 10))
    return TrainingData.of(
        ClipFeatures(
            [str(n) for n in range(videos)],
            features.astype(np.float16),
            rng.random((videos, clips, 7), dtype=np.float32),
        ),
        CPU,
    )


def losses_of(trainer: Trainer) -> list[float]:
    losses: list[float] = []
    fit(trainer, lambda metrics: losses.append(metrics["loss"]))
    return losses


def test_the_loss_falls_and_the_contrast_is_learnt():
    metrics = []
    fit(Trainer(data(), config(epochs=60), device=CPU), metrics.append)
    assert metrics[-1]["loss"] < 0.75 * metrics[0]["loss"]
    assert metrics[-1]["set_top1"] > 0.8
    assert [row["epoch"] for row in metrics] == list(range(1, 61))


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first = losses_of(Trainer(data(), config(), device=CPU))
    assert first == losses_of(Trainer(data(), config(), device=CPU))
    assert first != losses_of(Trainer(data(), config(seed=1), device=CPU))


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path):
    undisturbed = losses_of(Trainer(data(), config(), device=CPU))
    trainer = Trainer(data(), config(), device=CPU)
    before = [trainer.run_epoch()["loss"] for _ in range(3)]
    torch.save(trainer.state(), tmp_path / "state.pt")
    torch.manual_seed(99)
    resumed = Trainer(data(), config(), device=CPU)
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert before + losses_of(resumed) == undisturbed


def test_only_matrices_decay():
    trainer = Trainer(data(), config(), device=CPU)
    decayed, kept = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 1e-4
    assert kept["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    names = {name for name, p in trainer.aggregator.named_parameters() if any(p is q for q in kept["params"])}
    assert {"mask_token", "set_token", "norm.weight", "embed.bias"} <= names
    assert len(decayed["params"]) + len(kept["params"]) == len(trainer.parameters)


def test_the_batch_is_at_most_the_number_of_videos():
    trainer = Trainer(data(20), config(batch=512), device=CPU)
    assert (trainer.batch, trainer.steps_per_epoch) == (20, 1)
    assert Trainer(data(20), config(batch=8), device=CPU).steps_per_epoch == 2


def test_too_few_clips_or_videos_are_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"expected at most 2, half of the 5 clips .* found 3"):
        Trainer(data(clips=5), config(), device=CPU)
    with pytest.raises(UserError, match="expected at least 2 training videos in the store, found 1"):
        Trainer(data(1), config(), device=CPU)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    shares = [warmup_then_cosine(step, 5, 100) for step in range(101)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == 1.0
    assert shares[52] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert shares[100] == pytest.approx(0.0)
