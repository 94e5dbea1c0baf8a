"""The command `inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from scale_ray.cli.options import Caller, command
from scale_ray.config import BackboneOptions, CorpusOptions, Extraction, Inspection, Sampling

if TYPE_CHECKING:
    from scale_ray.inspection.cost import Machine


@click.command()
@click.argument("videos")
@command(CorpusOptions, Sampling, BackboneOptions, Extraction, Inspection)
def inspect(
    caller: Caller,
    videos: str,
    corpus: CorpusOptions,
    sampling: Sampling,
    backbone: BackboneOptions,
    extraction: Extraction,
    inspection: Inspection,
) -> int:
    """What is in VIDEOS, and what its extraction will cost on this machine.

    Opens the files, decodes a few of them and times the backbone; writes nothing. VIDEOS is what `extract`
    takes.
    """
    from scale_ray.corpus.corpus import read_corpus
    from scale_ray.inspection.corpus_facts import facts_of_corpus
    from scale_ray.inspection.headers import chosen, read_headers

    listed = read_corpus(caller.place("VIDEOS", videos), corpus)
    rows = chosen(listed, inspection.inspect_headers, inspection.inspect_seed)
    headers, unreadable = read_headers(rows, extraction, quiet=caller.quiet)
    facts = facts_of_corpus(listed, headers, unreadable)
    lines, values = facts.lines(), {"corpus": asdict(facts), "sample": None, "estimate": None}
    num_bad = len(unreadable)
    if headers and inspection.inspect_sample:
        from scale_ray.inspection.cost import estimate, videos_by_mode
        from scale_ray.inspection.trials import measure, spread_sample

        by_id = {row["video_id"]: row for row in rows}
        splits = [dict(by_id[header.video_id]["splits"]) for header in headers]
        several = len(listed.split_names) > 1
        num_videos = videos_by_mode(splits, extraction.mode, several=several, scale=facts.scale)
        machine = _machine_here(extraction)
        drawn = spread_sample(headers, inspection.inspect_sample, inspection.inspect_seed)
        sample = measure(
            [(header, by_id[header.video_id]["path"]) for header in drawn],
            list(num_videos),
            machine,
            sampling,
            backbone,
            extraction,
            quiet=caller.quiet,
        )
        expected = estimate(num_videos, sample.decoding, sample.backbones, machine, sampling, extraction.shard_videos)
        lines += sample.lines()
        lines += expected.lines() if expected else ["  no estimate: too few of them could be decoded"]
        values |= {"sample": asdict(sample), "estimate": asdict(expected) if expected else None}
        num_bad += len(sample.unreadable)
    caller.answer(lines, values)
    return 3 if num_bad else 0


def _machine_here(extraction: Extraction) -> Machine:
    """What a Ray of our own would run here, by the stream's own rule."""
    from scale_ray.distributed.resources import Size, sizes_of
    from scale_ray.inspection.cost import Machine
    from scale_ray.inspection.trials import cores_here, gpus_here

    size = Size(cores_here(), gpus_here())
    sizes = sizes_of(size, extraction)
    if size.gpus:
        devices = min(round(sizes.actors * sizes.actor_resources["num_gpus"]), size.gpus)
        return Machine(size.cpus, sizes.decoders, max(devices, 1), "cuda", sizes.actor_threads)
    return Machine(size.cpus, sizes.decoders, sizes.actors, "cpu", sizes.actor_threads)
