import numpy as np
import pytest
import torch

from scale_ray.aggregator import normalised_positions
from scale_ray.clip_sets.draws import draw_sets, shuffled, varied_positions, video_keys
from scale_ray.config import Sets
from scale_ray.errors import UserError

PINNED_CLIPS = [[0, 10, 15, 3], [11, 7, 8, 13]]
PINNED_MASKS = [[True, False, False, True], [False, False, True, True]]

KEYS = video_keys([f"video {number}" for number in range(2000)])


def draw(**changes):
    options = changes.pop("options", Sets(set_size=8, mask_ratio=0.25))
    return draw_sets(changes.pop("keys", KEYS), 16, options, **{"seed": 0, "epoch": 0} | changes)


def test_the_two_sets_of_a_video_are_disjoint():
    both = torch.cat(draw().clips_SV.chunk(2), 1)
    assert torch.equal(both.sort(1).values, torch.arange(16).expand(2000, -1))


def test_every_clip_is_equally_likely_at_every_place():
    chosen = draw(options=Sets(set_size=2, mask_ratio=0.0)).clips_SV.chunk(2)[0]
    for place in range(2):
        counts = torch.bincount(chosen[:, place], minlength=16).float()
        chi_square = ((counts - 125) ** 2 / 125).sum()
        assert chi_square < 37.7  # 99.9 % of a chi square of 15 degrees of freedom


def test_clips_are_masked_at_the_ratio_and_independently():
    masked = draw().masked_SV.float()
    assert abs(masked.mean() - 0.25) < 0.01
    correlation = np.corrcoef(masked.T.numpy()) - np.eye(8)
    assert np.abs(correlation).max() < 0.1
    first, second = masked.chunk(2)
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.05


def test_a_fixed_number_of_clips_is_masked_each_as_likely():
    drawn = draw(options=Sets(set_size=8, masked_clips=3))
    assert torch.equal(drawn.clips_SV, draw().clips_SV)
    assert (drawn.masked_SV.sum(1) == 3).all()
    counts = drawn.masked_SV.sum(0).float()
    assert ((counts - 1500) ** 2 / 1500).sum() < 24.3  # 99.9 % of a chi square of 7 degrees of freedom
    assert not draw(options=Sets(set_size=8, masked_clips=0)).masked_SV.any()
    with pytest.raises(UserError, match="expected fewer than the 8 clips of a set, found 8"):
        Sets(set_size=8, masked_clips=8)


def test_a_draw_depends_on_seed_epoch_and_video_alone():
    whole, part = draw(), draw(keys=KEYS[100:200])
    first, second = whole.clips_SV.chunk(2)
    assert torch.equal(part.clips_SV, torch.cat([first[100:200], second[100:200]]))
    assert not torch.equal(draw(epoch=1).clips_SV, whole.clips_SV)
    assert not torch.equal(draw(seed=1).clips_SV, whole.clips_SV)
    assert not torch.equal(draw(epoch=1).masked_SV, whole.masked_SV)


def test_seed_and_epoch_are_not_interchangeable():
    assert not torch.equal(draw(seed=1, epoch=0).clips_SV, draw(seed=0, epoch=1).clips_SV)


def test_the_draws_are_pinned():
    drawn = draw_sets(video_keys(["pinned"]), 16, Sets(set_size=4, mask_ratio=0.5), seed=3, epoch=5)
    assert drawn.clips_SV.tolist() == PINNED_CLIPS
    assert drawn.masked_SV.tolist() == PINNED_MASKS


def varied(**changes):
    positions = torch.rand(4000, 8, 7, generator=torch.Generator().manual_seed(0))
    keys, seed, epoch = changes.pop("keys", KEYS), changes.pop("seed", 0), changes.pop("epoch", 0)
    return positions, varied_positions(positions, keys, 16, Sets(set_size=8, **changes), seed=seed, epoch=epoch)


def test_positions_stay_as_they_are_unless_asked_for():
    positions, same = varied()
    assert torch.equal(positions, same)


def test_the_times_of_a_set_are_scaled_by_one_number():
    positions, jittered = varied(time_jitter=0.5)
    assert torch.equal(jittered[..., :5], positions[..., :5])
    factors = jittered[..., 5:] / positions[..., 5:]
    torch.testing.assert_close(factors, factors[:, :1, :1].expand_as(factors))
    factors = factors[:, 0, 0]
    assert factors.min() < 0.51
    assert factors.max() > 1.49
    assert abs(factors.mean() - 1) < 0.02
    first, second = factors.chunk(2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05, "the two sets of a video have numbers of their own"


def test_a_share_of_the_sets_loses_its_positions():
    positions, dropped = varied(position_dropout=0.3)
    is_dropped = ~dropped.flatten(1).any(1)
    assert torch.equal(dropped[~is_dropped], positions[~is_dropped])
    assert abs(is_dropped.float().mean() - 0.3) < 0.03
    first, second = is_dropped.float().chunk(2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.07
    assert torch.equal(dropped, varied(position_dropout=0.3)[1])
    assert not torch.equal(dropped, varied(position_dropout=0.3, epoch=1)[1])


def test_varied_positions_leave_the_drawn_clips_and_masks_as_they_are():
    plain = draw()
    with_both = draw(options=Sets(set_size=8, mask_ratio=0.25, time_jitter=0.5, position_dropout=0.5))
    assert torch.equal(plain.clips_SV, with_both.clips_SV)
    assert torch.equal(plain.masked_SV, with_both.masked_SV)


def test_an_epochs_order_holds_every_video_once():
    order = shuffled(1000, seed=0, epoch=3)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(order, shuffled(1000, seed=0, epoch=4))


def test_positions_are_normalised_per_video():
    positions = torch.tensor(
        [[[-1.0, 10, 20, 110, 220, 1, 3], [1.0, 60, 40, 160, 240, 5, 7]], [[-1.0, 0, 0, 9, 9, 0, 2]] * 2]
    )
    normal = normalised_positions(positions)
    assert normal[0, 0].tolist() == torch.tensor([-1, 0, 0, 100 / 150, 200 / 220, 0, 2 / 6]).tolist()
    assert normal[0, 1].tolist() == torch.tensor([1, 50 / 150, 20 / 220, 1, 1, 4 / 6, 1]).tolist()
    assert normal[1, 0].tolist() == [-1, 0, 0, 1, 1, 0, 1]


def test_a_zero_range_is_no_division_by_zero():
    assert torch.isfinite(normalised_positions(torch.zeros(1, 3, 7))).all()
