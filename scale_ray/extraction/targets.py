"""The backbones of an extraction, each with the store that its features go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.config import BackboneOptions, Part, Sampling, store_folder_name
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.files.locations import absolute, join
from scale_ray.store import FeatureStore, Lease, ShardStore, fingerprint_of, repair, write_lease

if TYPE_CHECKING:  # decoding processes do not load torch, which costs 4 s and 500 MB
    from scale_ray.backbones import Backbone


@dataclass(frozen=True)
class Target:
    """One backbone and the store that its features go to."""

    encoder: Backbone
    store: ShardStore
    lease: Lease


@contextmanager
def exclusively(targets: Sequence[Target]) -> Iterator[None]:
    """Keep the writers of other parts from reading or updating the whole stores while the context lasts."""
    with ExitStack() as turns:
        # In the same order by every writer, so that none waits for one that waits for it.
        for target in sorted(targets, key=lambda target: target.store.location):
            turns.enter_context(target.lease.exclusively())
            target.store.forget_videos()
        yield


@contextmanager
def open_targets(
    store: str, options: BackboneOptions, sampling: Sampling, console: Console, part: Part | None = None
) -> Iterator[list[Target]]:
    """Load the backbones that the options name, and open the store of each under a write lease, of a part or all.

    A single backbone uses the store at `store` itself; each of several backbones uses a subfolder of it.

    Raises
    ------
    UserError
        If a backbone cannot be loaded, a store there does not match, or another process writes to it.
    """
    from scale_ray.backbones import load_backbone

    single_options = options.each()
    num_backbones = len(single_options)
    encoders = [load_backbone(single, sampling.frames, sampling.eval_scale) for single in single_options]
    for note in (note for encoder in encoders for note in encoder.notes):
        console.say(note)
    if num_backbones > 1 and FeatureStore.is_store(store):
        raise UserError(f"{store}: expected a folder for the stores of {num_backbones} backbones, found a single store")
    folders = [join(store, store_folder_name(single.backbone)) for single in single_options]
    locations = [store] if num_backbones == 1 else folders
    with ExitStack() as leases:
        targets = []
        for encoder, location, single in zip(encoders, locations, single_options, strict=True):
            fingerprint = fingerprint_of(encoder.identity(), sampling)
            features_store = FeatureStore.create(location, fingerprint, loading_options(single))
            lease = leases.enter_context(write_lease(features_store.location, console, part))
            targets.append(Target(encoder, features_store, lease))
        with exclusively(targets):
            for target in targets:
                repair(target.store, others_write=part is not None)
        yield targets


def loading_options(options: BackboneOptions) -> dict[str, Any]:
    """The options to load the same backbone again, with the absolute path of a weights file."""
    weights = options.weights if options.weights in ("default", "none") else absolute(options.weights)
    return {**options.to_dict(), "weights": weights}
