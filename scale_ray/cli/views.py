"""Commands that only look: backbones, a store, the MLflow page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter

import click

from scale_ray.cli.options import Caller, command, runs_option
from scale_ray.config import Tracking


@click.command()
@command()
def backbones(caller: Caller) -> int:
    """List the names that --backbone takes."""
    from scale_ray.backbones import backbone_names, sees_video

    names = backbone_names()
    kinds = {
        "video models, a clip at once": [name for name in names if sees_video(name)],
        "image models, frame by frame": [name for name in names if not sees_video(name)],
    }
    lines = []
    for kind, members in kinds.items():
        lines += [f"{kind}:", *(f"  {name}" for name in members)]
    caller.answer(lines, kinds)
    return 0


@click.command()
@click.argument("store")
@command()
def store(caller: Caller, store: str) -> int:
    """What a feature store holds, and which videos failed."""
    from scale_ray.clips import MODES
    from scale_ray.store import FeatureStore

    found = FeatureStore(store)
    done = {mode: len(found.done(mode)) for mode in MODES}
    failures = found.failures()
    splits, labels = Counter(found.splits().values()), Counter(found.labels().values())
    size_bytes = found.size_bytes()
    fingerprint = found.fingerprint
    lines = [
        f"{store}: {len(found.splits())} videos, {size_bytes / 2**20:.1f} MiB",
        f"  backbone  {fingerprint['backbone']}, weights {fingerprint['weights']}, {fingerprint['input_px']} px",
        "  clips     " + ", ".join(f"{count} videos in mode {mode}" for mode, count in done.items()),
        "  splits    " + ", ".join(f"{name} {count}" for name, count in sorted(splits.items())),
        f"  labels    {len(labels)} classes" if labels else "  labels    none",
        f"  failures  {len(failures)}",
        *(f"    {entry.video_id} ({entry.stage}: {entry.reason})" for entry in failures),
    ]
    values = {
        "videos": len(found.splits()),
        "size_bytes": size_bytes,
        "fingerprint": fingerprint,
        "done": done,
        "splits": splits,
        "labels": labels,
        "failures": [vars(entry) for entry in failures],
    }
    caller.answer(lines, values)
    return 0


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
