"""What a cluster has, and how much of each stage of an extraction fits into it."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config import Extraction


@dataclass(frozen=True)
class Size:
    """What the cluster has: cores and GPUs, in whole numbers."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Sizes:
    """How much of each stage there is at once, and what Ray reserves for it."""

    decoders: int
    decoder_cpus: float
    actors: int
    actor_resources: dict[str, float]
    actor_threads: int


def sizes_of(size: Size, extraction: Extraction) -> Sizes:
    """Decoding tasks and backbone actors: all must fit into the cluster at the same time."""
    if size.gpus:
        gpus = extraction.actor_gpus or (size.gpus / extraction.actors if extraction.actors else 1.0)
        gpus = float(int(gpus)) if gpus > 1 else gpus  # Ray shares one GPU out, but not two and a half
        actors = extraction.actors or max(int(size.gpus / gpus), 1)
        decoders = extraction.decoders or max(size.cpus - 1, 1)
        return Sizes(decoders, min(size.cpus / decoders, 1.0) / 2, actors, {"num_gpus": gpus}, 1)
    # A backbone on CPUs uses 2 threads an actor; on one core both stages share it.
    threads = extraction.actor_cpus or min(size.cpus, 2)
    actors = extraction.actors or max(size.cpus // max(threads, 2), 1)
    decoders = extraction.decoders or max(size.cpus - actors, 1)
    # Half of what there is: Ray Data holds a part of the CPUs back for each stage, and on two cores whole
    # ones were seen to leave nothing for the decoders, for ever.
    share = min(size.cpus / (actors + decoders), 1.0) / 2
    return Sizes(decoders, share, actors, {"num_cpus": share}, threads)
