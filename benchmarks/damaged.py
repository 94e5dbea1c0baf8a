"""A corpus of files damaged at random: each is decoded or recorded in the ledger, and the run continues.

Files are copies of intact videos with bytes flipped or overwritten, or cut short. The command `extract` runs over them
and the intact videos. Its exit code must be that of failed videos, and every file must be accounted for.
"""

from __future__ import annotations

import collections
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import folder_of, parser, report

from scale_ray.corpus.sample_videos import make_samples, render, write_video

CODECS = {"libx264": "mkv", "mpeg4": "avi", "libvpx": "webm", "mpeg2video": "ts", "libx265": "mp4"}


def damage(content: bytes, draw: random.Random) -> bytes:
    """A copy with 1 to 1000 bytes changed, the end cut off, both, or 4096 bytes overwritten."""
    kind = draw.choice(["flip", "cut", "both", "block"])
    changed = bytearray(content)
    if kind in ("flip", "both"):
        for _ in range(draw.choice([1, 10, 100, 1000])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    if kind == "block":
        start = draw.randrange(len(changed))
        changed[start : start + 4096] = draw.randbytes(len(changed[start : start + 4096]))
    if kind in ("cut", "both"):
        del changed[draw.randrange(1, len(changed)) :]
    return bytes(changed)


def intact_videos(folder: Path) -> list[Path]:
    """Videos of several containers and codecs."""
    [first, *_] = make_samples(folder, 1, broken=False)
    frames = render("approach", np.random.default_rng(1))[:60]
    paths = [first]
    for codec, suffix in CODECS.items():
        path = folder / f"{codec}.{suffix}"
        write_video(path, frames, codec=codec, fps=25)
        paths.append(path)
    return paths


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--files", type=int, default=1000, help="number of damaged files")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the damage")
    given = arguments.parse_args()
    draw = random.Random(given.seed)
    with folder_of(given) as folder:
        intact = intact_videos(folder / "good")
        videos, store = folder / "damaged", folder / "store-damaged"
        for old in (videos, store):
            shutil.rmtree(old, ignore_errors=True)
        videos.mkdir()
        for number in range(given.files):
            source = draw.choice(intact)
            (videos / f"{number:05d}{source.suffix}").write_bytes(damage(source.read_bytes(), draw))
        for path in intact:
            shutil.copy(path, videos / f"good-{path.name}")
        process = subprocess.run(
            [
                *(sys.executable, "-m", "scale_ray", "extract", str(videos), "--store", str(store), "--json"),
                *("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--input-px", "32"),
                *("--decode-timeout-s", "20"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode in (0, 3), process.stderr
        summary = json.loads(process.stdout)
        assert summary["num_done"] + summary["num_failed"] + summary["num_skipped"] == given.files + len(intact)
        failed = {entry["video_id"] for entry in summary["failures"]}
        assert not any(name.startswith("good-") for name in failed), "an intact file must not fail"
        assert all(entry["reason"] for entry in summary["failures"])
        reasons = collections.Counter(
            f"{entry['stage']}: {entry['reason'].split(',')[0][:60]}" for entry in summary["failures"]
        )
        report(
            "damaged",
            given,
            {
                "exit code": process.returncode,
                "done": summary["num_done"],
                "failed": summary["num_failed"],
                "last line": process.stderr.splitlines()[-1],
                "reasons": dict(reasons.most_common(25)),
            },
        )


if __name__ == "__main__":
    main()
