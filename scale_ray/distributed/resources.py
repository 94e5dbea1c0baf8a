"""The resources of a cluster, and how many decoders and backbone actors of an extraction fit into it."""

from __future__ import annotations

from dataclasses import dataclass

from scale_ray.config import Extraction, Searching
from scale_ray.errors import UserError


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


@dataclass(frozen=True)
class TrialSizes:
    """How many trials of a sweep run at once, and what Ray reserves for each of the workers of one."""

    slots: int
    num_workers: int
    resources: dict[str, float]
    threads: int


def trial_sizes(size: ClusterSize, searching: Searching, num_workers: int, node_cpus: int) -> TrialSizes:
    """Choose the resources of trials so that at least one fits into the cluster; `node_cpus` are those of a node.

    Raises
    ------
    UserError
        If not even one does.
    """
    # Ray counts in ten-thousandths.
    cpus = int(min(searching.trial_cpus, size.cpus / num_workers) * 10_000) / 10_000
    if cpus > node_cpus:
        raise UserError(f"trial_cpus: expected at most the {node_cpus} CPUs of a node, found {searching.trial_cpus:g}")
    resources, slots = {"CPU": cpus}, int(size.cpus / (cpus * num_workers) + 1e-6)
    if size.gpus:
        gpus = searching.trial_gpus
        if gpus * num_workers > size.gpus:
            raise UserError(
                f"trial_gpus: expected at most {size.gpus} GPUs for the {num_workers} workers of a trial, found "
                f"{gpus:g} for each"
            )
        resources["GPU"] = gpus
        slots = min(slots, int(size.gpus / (gpus * num_workers) + 1e-6))
    slots = max(min(slots, searching.trials_at_once or slots), 1)
    return TrialSizes(slots, num_workers, resources, max(int(cpus), 1))
