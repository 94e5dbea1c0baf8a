"""The resources of a cluster, and how many decoders and backbone actors of an extraction fit into it."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config import Extraction


@dataclass(frozen=True)
class ClusterSize:
    """The resources of a cluster: whole numbers of CPU cores and GPUs."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class StageSizes:
    """How many decoding tasks and backbone actors run at once, and what Ray reserves for each of them."""

    decoders: int
    decoder_cpus: float
    actors: int
    actor_resources: dict[str, float]
    actor_threads: int


def stage_sizes(size: ClusterSize, extraction: Extraction) -> StageSizes:
    """Choose the numbers of decoding tasks and backbone actors so that all fit into the cluster at once."""
    if size.gpus:
        gpus = extraction.actor_gpus or (size.gpus / extraction.actors if extraction.actors else 1.0)
        gpus = float(int(gpus)) if gpus > 1 else gpus  # above 1, Ray accepts whole GPUs only
        actors = extraction.actors or max(int(size.gpus / gpus), 1)
        decoders = extraction.decoders or max(size.cpus - 1, 1)
        return StageSizes(decoders, min(size.cpus / decoders, 1.0) / 2, actors, {"num_gpus": gpus}, 1)
    # A backbone on CPUs uses 2 threads per actor; on one core both stages share it.
    threads = extraction.actor_cpus or min(size.cpus, 2)
    actors = extraction.actors or max(size.cpus // max(threads, 2), 1)
    decoders = extraction.decoders or max(size.cpus - actors, 1)
    # Only half of the CPUs is requested: Ray Data reserves some CPUs for each stage, and on two cores requests of
    # whole CPUs were seen to starve the decoders.
    cpus = min(size.cpus / (actors + decoders), 1.0) / 2
    return StageSizes(decoders, cpus, actors, {"num_cpus": cpus}, threads)
