import json
from dataclasses import replace

import pytest
import torch

from scale_ray.aggregator.model import Aggregator
from scale_ray.config import AggregatorOptions
from scale_ray.errors import UserError


@pytest.fixture
def aggregator():
    torch.manual_seed(0)
    aggregator = Aggregator(20, AggregatorOptions(width=64), {"backbone": "tiny"}).eval()
    # The tokens are initialised to zero, which would hide mistakes with them.
    torch.nn.init.normal_(aggregator.mask_token)
    torch.nn.init.normal_(aggregator.set_token)
    return aggregator


def batch(sets: int = 3, clips: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(sets, clips, 20), torch.rand(sets, clips, 7)


def test_tokens_start_at_zero_and_shapes_follow_the_set_size():
    fresh = Aggregator(20, AggregatorOptions(width=64))
    assert not fresh.mask_token.any()
    assert not fresh.set_token.any()
    for clips in (1, 5, 16):
        c, h = fresh(*batch(clips=clips))
        assert c.shape == (3, 64)
        assert h.shape == (3, clips, 64)


def test_clips_have_no_order_but_their_positions(aggregator):
    features, positions = batch()
    order = torch.tensor([3, 1, 4, 0, 2])
    c, h = aggregator(features, positions)
    permuted_c, permuted_h = aggregator(features[:, order], positions[:, order])
    torch.testing.assert_close(permuted_c, c)
    torch.testing.assert_close(permuted_h, h[:, order])
    moved_c, _ = aggregator(features, positions[:, order])
    assert not torch.allclose(moved_c, c, atol=1e-4)


def test_a_masked_clip_hides_its_feature_but_not_its_position(aggregator):
    features, positions = batch()
    masked = torch.zeros(3, 5, dtype=torch.bool)
    masked[:, 2] = True
    c, _ = aggregator(features, positions, masked)
    other, moved = features.clone(), positions.clone()
    other[:, 2] = 9.0
    moved[:, 2] = 0.5
    torch.testing.assert_close(aggregator(other, positions, masked)[0], c)
    assert not torch.allclose(aggregator(features, moved, masked)[0], c, atol=1e-4)
    assert not torch.allclose(aggregator(features, positions)[0], c, atol=1e-4)


def test_positions_per_set_do_not_tell_the_length_of_the_video(aggregator):
    features, positions = batch()
    shorter = positions.clone()
    shorter[..., 1:] = 0.25 * shorter[..., 1:] + 0.1
    assert not torch.allclose(aggregator(features, shorter)[0], aggregator(features, positions)[0], atol=1e-4)
    aggregator.options = replace(aggregator.options, position_scale="set")
    torch.testing.assert_close(aggregator(features, shorter)[0], aggregator(features, positions)[0])
    unknown = aggregator(features, torch.zeros_like(positions))[0]
    assert unknown.isfinite().all()


def test_positions_are_not_rounded_in_bfloat16(aggregator):
    """Two starts, 0.2 s apart at the end of a video of ten minutes."""
    _, positions = batch(sets=1, clips=1)
    positions[..., 5], positions[..., 6] = 597.6 / 600, 1.0
    later = positions.clone()
    later[..., 5] = 597.8 / 600
    assert torch.equal(positions.bfloat16(), later.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        codes = [aggregator._position_code(p) for p in (positions, later)]
    assert codes[0].dtype == torch.float32
    torch.testing.assert_close(codes[0], aggregator.position(positions), rtol=0, atol=0)
    assert not torch.equal(*codes)


def test_a_saved_aggregator_is_loaded_whole(aggregator, tmp_path):
    aggregator.save(str(tmp_path / "a"))
    loaded = Aggregator.load(str(tmp_path / "a"))
    inputs = batch()
    torch.testing.assert_close(loaded(*inputs), aggregator(*inputs))
    assert loaded.origin == {"backbone": "tiny"}
    assert not loaded.training


def test_the_hubs_conventions_read_and_write_the_same_two_files(aggregator, tmp_path):
    aggregator.save_pretrained(tmp_path / "hub")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "hub").iterdir()}
    for loaded in (Aggregator.from_pretrained(str(tmp_path / "hub")), Aggregator.load(str(tmp_path / "hub"))):
        inputs = batch()
        torch.testing.assert_close(loaded(*inputs), aggregator(*inputs))
        assert loaded.origin == {"backbone": "tiny"}


def test_a_missing_or_damaged_aggregator_is_refused(aggregator, tmp_path):
    with pytest.raises(UserError, match="found none at"):
        Aggregator.load(str(tmp_path))
    aggregator.save(str(tmp_path))
    weights = tmp_path / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UserError, match="found a damaged one"):
        Aggregator.load(str(tmp_path))
    weights.write_bytes(intact)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "width": 128}))
    with pytest.raises(UserError, match="found a damaged one"):
        Aggregator.load(str(tmp_path))
