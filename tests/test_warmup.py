import math

import pytest
import torch

from scale_ray.warmup import schedule_of, warmup_then_cosine


def test_the_learning_rate_warms_up_and_falls_to_zero():
    fractions = [warmup_then_cosine(step, 5, 100) for step in range(101)]
    assert fractions[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert fractions[5] == 1.0
    assert fractions[52] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert fractions[100] == pytest.approx(0.0)


def test_every_group_keeps_its_own_peak():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": peak} for peak in (1e-3, 4e-3)]
    optimizer = torch.optim.SGD(groups)
    schedule = schedule_of(optimizer, 40, 0.05)
    rates = []
    for _ in range(40):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx([5e-4, 2e-3])
    assert rates[1] == rates[2] == [1e-3, 4e-3]
    assert rates[39][0] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 37 / 38)))
