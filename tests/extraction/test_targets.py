"""The backbones of an extraction and their stores: what is said and recorded about weights."""

import pytest
from support.weights import write_contrastive_slow_r50

from scale_ray.config import BackboneOptions, Sampling
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.extraction import open_targets
from scale_ray.stages.store import StoreResult


def contrastive_file(path, *copies: str) -> BackboneOptions:
    return BackboneOptions(backbone="slow_r50", weights=str(write_contrastive_slow_r50(path, *copies)))


def test_the_copy_of_the_weights_is_said_recorded_shown_and_part_of_the_fingerprint(tmp_path, capsys):
    both = contrastive_file(tmp_path / "both.pyth", "backbone", "backbone_hist")
    with open_targets(str(tmp_path / "store"), both, Sampling(), Console()) as [target]:
        fingerprint = target.store.fingerprint
    said = capsys.readouterr().err
    assert "slow_r50: weights of the momentum copy (backbone_hist.*)\n" in said
    assert "slow_r50: weights not used: backbone (319 tensors), backbone_hist (1 tensor)\n" in said
    assert fingerprint["weights_copy"] == "momentum"
    shown = StoreResult("store", 0, 0, 0, fingerprint, 5, {}, {}, {}, []).lines()[1]
    assert f"weights {fingerprint['weights']}, weights copy momentum, 224 px" in shown
    online = contrastive_file(tmp_path / "online.pyth", "backbone")
    refusal = "weights_copy 'momentum' in the store, None asked for"
    with (
        pytest.raises(UserError, match=refusal),
        open_targets(str(tmp_path / "store"), online, Sampling(), Console()),
    ):
        pass
