"""A corpus of files damaged at random: each is decoded or entered into the ledger, and the run goes on.

Files are copies of good videos with bytes flipped, or cut short, or both. They go through the real command
together with the good ones; the exit code must say that some failed, and every file must be accounted for.
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
    """Bytes flipped in one of several numbers, or the end cut off, or both."""
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


def sources(folder: Path) -> list[Path]:
    """Good videos of several containers and codecs."""
    [first, *_] = make_samples(folder, 1, broken=False)
    frames = render("approach", np.random.default_rng(1))[:60]
    made = [first]
    for codec, suffix in CODECS.items():
        path = folder / f"{codec}.{suffix}"
        write_video(path, frames, codec=codec, fps=25)
        made.append(path)
    return made


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--files", type=int, default=1000, help="damaged files")
    arguments.add_argument("--seed", type=int, default=0, help="of the damage")
    given = arguments.parse_args()
    draw = random.Random(given.seed)
    with folder_of(given) as folder:
        good = sources(folder / "good")
        videos, store = folder / "damaged", folder / "store-damaged"
        for old in (videos, store):
            shutil.rmtree(old, ignore_errors=True)
        videos.mkdir()
        for number in range(given.files):
            whole = draw.choice(good)
            (videos / f"{number:05d}{whole.suffix}").write_bytes(damage(whole.read_bytes(), draw))
        for path in good:
            shutil.copy(path, videos / f"good-{path.name}")
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "scale_ray", "extract", str(videos), "--store", str(store), "--json"),
                *("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--input-px", "32"),
                *("--decode-timeout-s", "20"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode in (0, 3), ended.stderr
        summary = json.loads(ended.stdout)
        assert summary["num_done"] + summary["num_failed"] + summary["num_skipped"] == given.files + len(good)
        failed = {entry["video_id"] for entry in summary["failures"]}
        assert not any(name.startswith("good-") for name in failed), "a whole file must not fail"
        assert all(entry["reason"] for entry in summary["failures"])
        reasons = collections.Counter(
            f"{entry['stage']}: {entry['reason'].split(',')[0][:60]}" for entry in summary["failures"]
        )
        report(
            "damaged",
            given,
            {
                "exit code": ended.returncode,
                "done": summary["num_done"],
                "failed": summary["num_failed"],
                "last line": ended.stderr.splitlines()[-1],
                "reasons": dict(reasons.most_common(25)),
            },
        )


if __name__ == "__main__":
    main()
