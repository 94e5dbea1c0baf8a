"""Representations with other parts than feature and set token, and the weight between the two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.stores import make_store, positions_of
from torch.nn import functional as F

from scale_ray.aggregator import Aggregator, normalised_positions, tokens_of_clips
from scale_ray.clip_sets import video_keys
from scale_ray.config import AggregatorOptions, Probing, Representing
from scale_ray.embedding.vector_store import fingerprint_of_vectors
from scale_ray.embedding.video_model import clip_vectors
from scale_ray.errors import UserError
from scale_ray.probes.data import ProbeDataset, ProbeSplit
from scale_ray.probes.evaluation import BACKBONE_ALONE, TOKENS_ALONE, TRAINED_AGGREGATOR, probe_table
from scale_ray.probes.inputs import Tokens, View
from scale_ray.probes.targets import CLASSES, Targets
from scale_ray.probes.token_weight import chosen_token_weight

EVERYTHING = Representing(parts=("x", "c", "h", "h_mean"), unit_norm=True, token_weight=0.5)


def small_aggregator(width: int = 6) -> Aggregator:
    torch.manual_seed(0)
    return Aggregator(width, AggregatorOptions(width=32, layers=1)).eval()


def dataset_of(num_videos: int = 8, num_clips: int = 5, name: str = "v") -> ProbeDataset:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(num_videos, num_clips, 6, generator=generator).half()
    positions = normalised_positions(torch.rand(num_videos, num_clips, 7, generator=generator))
    ids = [f"{name}{number}" for number in range(num_videos)]
    targets = torch.arange(num_videos) % 2
    return ProbeDataset(ids, ids, targets, features, positions, positions, video_keys(ids))


def written_out(aggregator: Aggregator, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Feature, set token, clip tokens and their mean, each of norm 1, the last three times a half."""
    with torch.inference_mode():
        c, h = aggregator(x.float(), positions)
    parts = [x.float(), 0 * h + c[:, None], h, 0 * h + h.mean(1)[:, None]]
    unit = [part / part.norm(dim=2, keepdim=True) for part in parts]
    return torch.cat([unit[0], *(0.5 * part for part in unit[1:])], 2)


def test_parts_are_concatenated_at_unit_norm_and_weighted():
    aggregator, dataset = small_aggregator(), dataset_of()
    view = View(dataset, "feature", Tokens(dataset, aggregator, EVERYTHING, 4), EVERYTHING)
    rows = torch.arange(len(dataset))
    expected = written_out(aggregator, dataset.features, dataset.positions)
    torch.testing.assert_close(view.whole(rows), expected)
    torch.testing.assert_close(view.videos, expected.mean(1))
    drawn = view.drawn(rows, 3, seed=0, epoch=0)
    chosen = (drawn[0, :, :6] @ F.normalize(dataset.features[0].float(), dim=1).T).argmax(1)
    of_set = written_out(aggregator, dataset.features[:1, chosen], dataset.positions[:1, chosen])
    torch.testing.assert_close(drawn[:1], of_set, atol=1e-3, rtol=0)  # drawn tokens are kept as float16


def test_tokens_of_one_clip_differ_with_h_alone():
    aggregator, dataset = small_aggregator(), dataset_of()

    def tokens(*parts: str) -> torch.Tensor:
        return tokens_of_clips(aggregator, dataset.features, dataset.positions, Representing(parts=parts))

    assert not torch.allclose(tokens("h")[:, 0], tokens("h")[:, 1])
    assert torch.equal(tokens("c")[:, 0], tokens("c")[:, 1])
    torch.testing.assert_close(tokens("h").mean(1), tokens("h_mean")[:, 0])
    assert torch.equal(tokens("h_mean", "c"), torch.cat([tokens("c"), tokens("h_mean")], 2))


def test_vectors_are_the_representations_that_the_probes_see():
    aggregator, dataset = small_aggregator(), dataset_of()
    rng = np.random.default_rng(0)
    raw = np.stack([positions_of(rng, dataset.num_clips) for _ in range(len(dataset))])
    seen = replace(dataset, positions=normalised_positions(torch.from_numpy(raw)))
    view = View(seen, "feature", Tokens(seen, aggregator, EVERYTHING, 4), EVERYTHING)
    vectors = clip_vectors(aggregator, seen.features.numpy(), raw, EVERYTHING)
    np.testing.assert_allclose(vectors.mean(1), view.videos, atol=1e-6)


def test_a_representation_needs_a_part_of_the_aggregator():
    with pytest.raises(UserError, match="parts: expected at least one of c, h, h_mean, found x"):
        Representing(parts=("x",))


def test_the_default_leaves_earlier_vectors_valid():
    aggregator = small_aggregator()
    before = {"aggregator", "ensemble", "per_clip"}
    assert set(fingerprint_of_vectors(aggregator, Representing(), per_clip=False)) == before
    other = fingerprint_of_vectors(aggregator, EVERYTHING, per_clip=False)
    assert set(other) == before | {"parts", "unit_norm", "token_weight"}


def split_whose_classes_are_told_by(tokens_tell: bool, groups: list[str] | None = None) -> tuple[ProbeSplit, Tokens]:
    """Either the tokens or the features are the class, at the same scale; the others are noise."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(40) % 2
    telling = F.one_hot(labels, 2).float()[:, None].expand(-1, 4, -1)
    noise = torch.randn(40, 4, 2, generator=generator)
    features, tokens = (noise, telling) if tokens_tell else (telling, noise)
    ids = [f"v{number}" for number in range(40)]
    train = ProbeDataset(ids, groups or ids, labels, features, features, features, video_keys(ids))
    no_test_videos = cast(Any, None)  # the choice must not touch them
    split = ProbeSplit("s", Targets(CLASSES, ["a", "b"], {}), train, no_test_videos, torch.ones(40, dtype=torch.bool))
    return split, cast(Tokens, SimpleNamespace(whole=tokens))


@pytest.mark.parametrize(("tokens_tell", "expected"), [(True, 30.0), (False, 0.03)])
def test_the_token_weight_is_chosen_among_the_training_videos(tokens_tell: bool, expected: float):
    split, tokens = split_whose_classes_are_told_by(tokens_tell)
    probing = Probing(token_weights=(0.03, 30.0), knn_k=(5,))
    assert chosen_token_weight(split, tokens, Representing(), probing) == expected
    # The same with official validation videos.
    split = replace(split, is_training=torch.arange(40) < 30)
    assert chosen_token_weight(split, tokens, Representing(), probing) == expected


def test_with_one_group_the_first_token_weight_is_taken():
    split, tokens = split_whose_classes_are_told_by(True, ["g"] * 40)
    assert chosen_token_weight(split, tokens, Representing(), Probing(token_weights=(0.03, 30.0))) == 0.03


def test_the_table_names_the_chosen_weights_and_every_probe_takes_other_parts(tmp_path: Path):
    rng = np.random.default_rng(0)
    features = {f"v{n:02d}": rng.normal(size=(4, 6)) + 3 * (n % 2) for n in range(24)}
    store = make_store(
        tmp_path / "s",
        features,
        sides=["train" if n < 16 else "test" for n in range(24)],
        label=[f"class {n % 2}" for n in range(24)],
    )
    probing = Probing(
        probes=("knn", "linear", "attentive", "finetuned"),
        token_weights=(0.25, 4.0),
        probe_epochs=1,
        probe_min_steps=20,
        deep_epochs=1,
        deep_min_steps=10,
        learning_rates=(1e-2,),
        weight_decays=(1e-4,),
        probe_set_size=2,
        resamples=50,
    )
    table, _ = probe_table(store, [small_aggregator()], probing, representing=replace(EVERYTHING, token_weight=1.0))
    rows = {row.representation: row.metrics for row in table.rows}
    assert rows[TRAINED_AGGREGATOR].keys() == {*rows[BACKBONE_ALONE], "finetuned_top1"}
    assert "finetuned_top1" not in rows[TOKENS_ALONE]
    assert rows[TRAINED_AGGREGATOR]["linear_top1"].value == 1
    [weight] = table.token_weights[TRAINED_AGGREGATOR]
    assert weight in (0.25, 4.0)
    line = f"token weight with trained aggregator, chosen among the training videos: {weight:g}"
    assert line in table.footnotes()
