"""The nodes of a cluster, and how many decoders, backbone actors and trials fit onto them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from scale_ray.config import Extraction, Searching, matches, parse_labels
from scale_ray.errors import UserError

# Part of the CPUs that an extraction requests. On one machine half of them: Ray Data keeps some for each stage, and on
# two cores requests of whole CPUs starved the decoders. On several, nearly all: Ray fills a node up to its CPUs, so
# smaller requests would put twice as many decoders as cores on a small node, and leave a large one idle.
_REQUESTED_ON_ONE_NODE = 0.5
_REQUESTED_ON_SEVERAL = 0.95
# The label by which Ray names each node; nobody selects by it.
NODE_ID_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster: whole numbers of CPU cores and GPUs, and its labels."""

    cpus: int
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterSize:
    """The resources of a cluster: whole numbers of CPU cores and GPUs, in all and by node; by default of one node."""

    cpus: int
    gpus: int
    nodes: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        if not self.nodes:
            object.__setattr__(self, "nodes", (Node(self.cpus, self.gpus),))

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> ClusterSize:
        """The size of a cluster of these nodes; never less than one CPU, which an autoscaler is about to bring."""
        nodes = tuple(nodes)
        return cls(max(sum(node.cpus for node in nodes), 1), sum(node.gpus for node in nodes), nodes)

    def selected(self, name: str, selector: str | None) -> ClusterSize:
        """The part of the cluster on which work may run: nodes that match a selector, the value of option `name`.

        Raises
        ------
        UserError
            If no node with CPUs or GPUs matches: Ray would wait for one for ever.
        """
        if selector is None:
            return self
        conditions = parse_labels(selector)
        nodes = [node for node in self.nodes if (node.cpus or node.gpus) and matches(conditions, node.labels)]
        if not nodes:
            existing = sorted({f"{k}={v}" for node in self.nodes for k, v in node.labels.items() if k != NODE_ID_LABEL})
            known = f"the labels {', '.join(existing)}" if existing else "no labels at all"
            raise UserError(f"{name}: expected a node with CPUs or GPUs and the labels {selector}, found {known}")
        return ClusterSize.of(nodes)


@dataclass(frozen=True)
class StageSizes:
    """How many decoding tasks and backbone actors run at once, and what Ray reserves for each of them.

    `may_stay` says that pixels can stay on one of several nodes: some both decode and embed.
    """

    decoders: int
    decoder_cpus: float
    actors: int
    actor_resources: dict[str, float]
    actor_threads: int
    may_stay: bool = False


def stage_sizes(size: ClusterSize, extraction: Extraction) -> StageSizes:
    """Choose the numbers of decoding tasks and backbone actors so that all fit onto their nodes at once.

    Raises
    ------
    UserError
        If no node matches a selector, or an actor is to have more than the largest node has.
    """
    decoding = size.selected("decoder_labels", extraction.decoder_labels)
    embedding = size.selected("actor_labels", extraction.actor_labels)
    if extraction.decoder_labels is not None and not any(node.cpus for node in decoding.nodes):
        raise UserError(
            f"decoder_labels: expected a node with CPUs and the labels {extraction.decoder_labels}, found 0 CPUs there"
        )
    nodes = [node for node in size.nodes if node.cpus or node.gpus]
    busy = [node for node in nodes if node in decoding.nodes or node in embedding.nodes]
    requested = _REQUESTED_ON_ONE_NODE if len(busy) <= 1 else _REQUESTED_ON_SEVERAL
    sizes = (_with_gpus if embedding.gpus else _without_gpus)(decoding, embedding, extraction, requested)
    both = [node for node in busy if node.cpus and node in decoding.nodes and node in embedding.nodes]
    if embedding.gpus:
        both = [node for node in both if node.gpus]
    return replace(sizes, may_stay=bool(both) and len(busy) > 1)


def _with_gpus(decoding: ClusterSize, embedding: ClusterSize, extraction: Extraction, requested: float) -> StageSizes:
    gpus = _gpus_per_actor(embedding, extraction)
    actors = extraction.actors or max(sum(_actors_on(node, gpus) for node in embedding.nodes), 1)
    # A core for each GPU, without which the process that feeds it would compete with the decoders; but never more than
    # half of the cores of a node that also decodes.
    placed = [(node, count) for node in embedding.nodes if (count := _actors_on(node, gpus))]
    shared = [(node, count) for node, count in placed if node in decoding.nodes]
    most = [node.cpus / count / (2 if node in decoding.nodes else 1) for node, count in placed]
    cpus = min([max(gpus, 1.0), *most])
    free = [float(node.cpus) for node in decoding.nodes if (node, _actors_on(node, gpus)) not in shared]
    left = min(actors, sum(count for _, count in shared))
    for node, count in shared:
        free.append(node.cpus - min(count, left) * cpus)
        left -= min(count, left)
    decoders = extraction.decoders or max(sum(map(int, free)), 1)
    decoder_cpus = min(sum(free) / decoders, 1.0) * requested or requested / 2
    # Not more than a decoder requests: one that ends makes room for an actor.
    resources = {"num_gpus": gpus, "num_cpus": min(cpus * requested, decoder_cpus)}
    return StageSizes(decoders, decoder_cpus, actors, resources, 1)


def _gpus_per_actor(embedding: ClusterSize, extraction: Extraction) -> float:
    """GPUs of each actor: a part of a GPU, or whole ones of one node."""
    largest, actors = max(node.gpus for node in embedding.nodes), extraction.actors
    if extraction.actor_gpus > largest:
        raise UserError(f"actor_gpus: expected at most the {largest} GPUs of a node, found {extraction.actor_gpus:g}")
    if extraction.actor_gpus or not actors:
        return extraction.actor_gpus or 1.0
    if actors > embedding.gpus:
        return 1 / -(-actors // embedding.gpus)  # a GPU is cut into equal parts
    for gpus in range(largest, 1, -1):
        if sum(_actors_on(node, gpus) for node in embedding.nodes) >= actors:
            return float(gpus)
    return 1.0


def _actors_on(node: Node, gpus: float) -> int:
    """How many actors with so many GPUs each a node has room for."""
    return int(node.gpus // gpus) if gpus >= 1 else node.gpus * int(1 / gpus + 1e-6)


def _without_gpus(
    decoding: ClusterSize, embedding: ClusterSize, extraction: Extraction, requested: float
) -> StageSizes:
    largest = max(1, *(node.cpus for node in embedding.nodes))
    if extraction.actor_cpus > largest:
        raise UserError(f"actor_cpus: expected at most the {largest} CPUs of a node, found {extraction.actor_cpus}")
    # A backbone on CPUs uses 2 threads per actor; on one core both stages share it.
    threads = extraction.actor_cpus or min(largest, 2)
    shared = [node for node in embedding.nodes if node in decoding.nodes]
    cpus_per_actor = max(threads, 2) if shared else threads
    actors = extraction.actors or max(sum(node.cpus // cpus_per_actor for node in embedding.nodes), 1)
    decoders = extraction.decoders or max(decoding.cpus - (actors if shared else 0), 1)
    if not shared and requested == _REQUESTED_ON_SEVERAL and not (extraction.actors or extraction.decoders):
        return StageSizes(decoders, requested, actors, {"num_cpus": threads * requested}, threads)
    # The same for both, so that whatever ends on a node makes room for the other: with actors requesting three times as
    # much as decoders, three nodes were no faster than one.
    everywhere = decoding.cpus + embedding.cpus - sum(node.cpus for node in shared)
    cpus = min(everywhere / (actors + decoders), 1.0) * requested
    return StageSizes(decoders, cpus, actors, {"num_cpus": cpus}, threads)


@dataclass(frozen=True)
class TrialSizes:
    """How many trials of a sweep run at once, and what Ray reserves for each of the workers of one."""

    slots: int
    num_workers: int
    resources: dict[str, float]
    threads: int


def trial_sizes(size: ClusterSize, searching: Searching, num_workers: int) -> TrialSizes:
    """Choose the resources of trials so that at least one fits into the cluster.

    Raises
    ------
    UserError
        If not even one does.
    """
    largest = max(1, *(node.cpus for node in size.nodes))
    # Ray counts in ten-thousandths.
    cpus = int(min(searching.trial_cpus, size.cpus / num_workers) * 10_000) / 10_000
    if cpus > largest:
        raise UserError(f"trial_cpus: expected at most the {largest} CPUs of a node, found {searching.trial_cpus:g}")
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
