"""The backbones of an extraction, each with the store that its features go to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.config import BackboneOptions, Sampling, store_folder_name
from scale_ray.errors import UserError
from scale_ray.locations import absolute, join
from scale_ray.store import FeatureStore, Lease, ShardStore, fingerprint_of, repair, write_lease

if TYPE_CHECKING:  # whoever decodes does without torch: 4 s and 500 MB
    from scale_ray.backbones import Backbone


@dataclass(frozen=True)
class Target:
    """One backbone and the store that its features go to."""

    encoder: Backbone
    store: ShardStore
    lease: Lease


@contextmanager
def opened_targets(store: str, options: BackboneOptions, sampling: Sampling) -> Iterator[list[Target]]:
    """The backbones that the options name, each with its store, held for writing.

    One backbone's store is at `store` itself; of several, each has a folder of its own in it.

    Raises
    ------
    UserError
        Where a backbone cannot be had, a store there is of another kind, or somebody else writes to it.
    """
    from scale_ray.backbones import load_backbone

    several = options.each()
    encoders = [load_backbone(one, sampling.frames) for one in several]
    if len(several) > 1 and FeatureStore.is_store(store):
        raise UserError(f"{store}: expected a folder for the stores of {len(several)} backbones, found a store itself")
    places = [store] if len(several) == 1 else [join(store, store_folder_name(one.backbone)) for one in several]
    with ExitStack() as leases:
        targets = []
        for encoder, place, one in zip(encoders, places, several, strict=True):
            fingerprint = fingerprint_of(encoder.identity(), sampling)
            features_store = FeatureStore.create(place, fingerprint, loading_options(one))
            targets.append(Target(encoder, features_store, leases.enter_context(write_lease(features_store.location))))
        for target in targets:
            repair(target.store)
        yield targets


def loading_options(options: BackboneOptions) -> dict[str, Any]:
    """How to load the same backbone again: its options, with a file of weights by its absolute path."""
    weights = options.weights if options.weights in ("default", "none") else absolute(options.weights)
    return {**options.to_dict(), "weights": weights}
