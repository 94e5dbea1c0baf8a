"""Commands that only look: a corpus, backbones, a store, the MLflow page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from scale_ray.cli.options import Caller, command, runs_option
from scale_ray.config import BackboneOptions, CorpusOptions, Extraction, Inspection, Sampling, Tracking
from scale_ray.errors import UserError

if TYPE_CHECKING:
    from scale_ray.planning import Machine


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
    from scale_ray.corpus import read_corpus
    from scale_ray.inspection import chosen, facts_of_corpus, read_headers

    listed = read_corpus(caller.place("VIDEOS", videos), corpus)
    rows = chosen(listed, inspection.inspect_headers, inspection.inspect_seed)
    headers, unreadable = read_headers(rows, extraction, quiet=caller.quiet)
    facts = facts_of_corpus(listed, headers, unreadable)
    lines, values = facts.lines(), {"corpus": asdict(facts), "sample": None, "estimate": None}
    num_bad = len(unreadable)
    if headers and inspection.inspect_sample:
        from scale_ray.measuring import measure, spread_sample
        from scale_ray.planning import estimate, videos_by_mode

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
    from scale_ray.measuring import cores_here, gpus_here
    from scale_ray.planning import Machine
    from scale_ray.resources import Size, sizes_of

    size = Size(cores_here(), gpus_here())
    sizes = sizes_of(size, extraction)
    if size.gpus:
        devices = min(round(sizes.actors * sizes.actor_resources["num_gpus"]), size.gpus)
        return Machine(size.cpus, sizes.decoders, max(devices, 1), "cuda", sizes.actor_threads)
    return Machine(size.cpus, sizes.decoders, sizes.actors, "cpu", sizes.actor_threads)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--measure", is_flag=True, help="Measure the seconds that a clip takes here, for each NAME.")
@command()
def backbones(caller: Caller, names: tuple[str, ...], measure: bool) -> int:
    """List what --backbone takes, with sizes and costs; with NAMEs, those of these alone.

    A NAME may be anything that --backbone takes, an hf: folder or a function of your own too.
    """
    from scale_ray.backbones import facts_of, facts_of_torchvision

    if measure and not names:
        raise UserError("--measure: expected the NAMEs of backbones to measure, found none")
    if names:
        facts = [facts_of(BackboneOptions(backbone=name), measure=measure) for name in names]
    else:
        facts = facts_of_torchvision()
    heads = ("name", "sees", "width", "px", "frames", "parameters/M", "GFLOP/clip", *(("s/clip",) if measure else ()))
    rows = [
        (
            each.name,
            "video" if each.sees_video else "image",
            str(each.feature_width),
            str(each.input_px),
            str(each.frames or "any"),
            f"{each.parameters_millions:.1f}",
            f"{each.gflop_per_clip:.1f}",
            *([f"{each.seconds_per_clip:.3g}"] if each.seconds_per_clip is not None else []),
        )
        for each in facts
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in (heads, *rows))
    ]
    also = {
        "slow_r50": "Slow R50 of rho-BYOL, from a file of SlowFast's model zoo",
        "svt": "Self-supervised Video Transformer, from a file of its authors",
        "hf:ID_OR_FOLDER": "VideoMAE, TimeSformer, V-JEPA 2, CLIP, DINOv2 and DINOv3 of Hugging Face",
        "package.module:function": "a function of your own that returns a backbone",
    }
    lines += [
        "",
        "A clip has 16 frames; GFLOP count a multiplication with its addition as one. Image models see the frames",
        "one by one; with --frame-pooling moments they are three times as wide.",
    ]
    if not names:
        widest = max(map(len, also))
        lines += ["Also:", *(f"  {name.ljust(widest)}  {text}" for name, text in also.items())]
    caller.answer(lines, {"backbones": [vars(each) for each in facts], "also": also})
    return 0


@click.command()
@click.argument("store")
@click.option("--verify", is_flag=True, help="Read every shard whole, check sums included.")
@click.option("--compact", is_flag=True, help="Merge small shards; nobody else may write meanwhile.")
@command()
def store(caller: Caller, store: str, verify: bool, compact: bool) -> int:
    """What a feature store holds, and which videos failed."""
    from scale_ray import upkeep
    from scale_ray.clips import MODES
    from scale_ray.lease import held
    from scale_ray.store import FeatureStore

    found = FeatureStore(store)
    merged = None
    if compact:
        with held(found.location):
            upkeep.tidy(found)
            merged = upkeep.compact(found)
    done = {mode: len(found.done(mode)) for mode in MODES}
    failures = found.failures()
    videos = found.videos()
    splits = Counter(f"{name} {side}" for sides in videos["splits"].to_pylist() for name, side in sides)
    labels = Counter(found.labels().values())
    size_bytes, num_shards = found.size_bytes(), len(found.parts("features/part-"))
    fingerprint = found.fingerprint
    lines = [
        f"{store}: {len(videos)} videos in {num_shards} shards, {size_bytes / 2**20:.1f} MiB",
        f"  backbone  {fingerprint['backbone']}, weights {fingerprint['weights']}, {fingerprint['input_px']} px, "
        f"features {found.feature_width() or 0} wide",
        "  clips     " + ", ".join(f"{count} videos in mode {mode}" for mode, count in done.items() if count),
        "  splits    " + ", ".join(f"{name} {count}" for name, count in sorted(splits.items())),
        f"  labels    {len(labels)} classes" if labels else "  labels    none",
        f"  failures  {len(failures)}",
        *(f"    {entry.video_id} ({entry.stage}: {entry.reason})" for entry in failures),
    ]
    values = {
        "videos": len(videos),
        "shards": num_shards,
        "size_bytes": size_bytes,
        "fingerprint": fingerprint,
        "feature_width": found.feature_width(),
        "done": done,
        "splits": splits,
        "labels": labels,
        "failures": [vars(entry) for entry in failures],
    }
    if merged is not None:
        lines.append(f"  compacted {merged[0]} shards are {merged[1]} now")
    if verify:
        wrong = upkeep.verify(found)
        values["wrong"] = wrong
        lines += [f"  wrong     {line}" for line in wrong] or [f"  verified  {num_shards} shards, all whole"]
    caller.answer(lines, values)
    return 1 if verify and wrong else 0


@click.command()
@runs_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@command(Tracking)
def ui(caller: Caller, runs: str, host: str, port: int, tracking: Tracking) -> int:
    """Serve MLflow's page of all runs on this machine."""
    from scale_ray.tracking import server_command

    program, *arguments = server_command(tracking, runs, host, port)
    # The program of the environment that we run in, whether or not it is activated.
    beside = os.path.join(os.path.dirname(sys.executable), program)
    caller.say(f"MLflow at http://{host}:{port} (Ctrl-C ends it)")
    return subprocess.call([beside if os.path.exists(beside) else shutil.which(program) or program, *arguments])
