"""The command `store`."""

from __future__ import annotations

from collections import Counter

import click

from scale_ray.cli.options import Caller, command


@click.command()
@click.argument("store")
@click.option("--verify", is_flag=True, help="Read every shard whole, check sums included.")
@click.option("--compact", is_flag=True, help="Merge small shards; nobody else may write meanwhile.")
@command()
def store(caller: Caller, store: str, verify: bool, compact: bool) -> int:
    """What a feature store holds, and which videos failed."""
    from scale_ray.clips import MODES
    from scale_ray.store import maintenance as upkeep
    from scale_ray.store.feature_store import FeatureStore
    from scale_ray.store.lease import held

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
