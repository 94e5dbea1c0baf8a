"""What one core decodes, by kind of file and mode of the clips.

Files of ten seconds, as public data sets have them: MPEG-4 in AVI (UCF-101, HMDB-51), H.264 with a short side of 240
and of 320 px (Kinetics), VP9 in WebM (Something-Something V2). From each, the clips of every mode are decoded, cropped
and resized, to 224 px in modes `train` and `augmented` and to 256 px in `eval`. Times are seconds of a core, of all
threads of the process together, so that other programs on the machine matter little; medians of interleaved runs.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from common import encode_pattern, folder_of, parser, report

from scale_ray.config import Sampling
from scale_ray.decoding import decode_clips

LENGTH_S = 10
INPUT_PX = {"train": 224, "augmented": 224, "eval": 256}
# Name, codec, options of the encoder, width, height, frames per second.
FILES = (
    ("mpeg4-240.avi", "mpeg4", {"g": "12", "qscale": "5"}, 320, 240, 25),
    ("h264-240.mp4", "libx264", {"preset": "veryfast"}, 320, 240, 30),
    ("h264-320.mp4", "libx264", {"preset": "veryfast"}, 568, 320, 30),
    ("vp9-240.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, 426, 240, 12),
)


def core_seconds(path: Path, mode: str) -> float:
    began_s = time.process_time()
    decode_clips(str(path), "benchmark", mode, Sampling(), [INPUT_PX[mode]])
    return time.process_time() - began_s


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=5, help="runs of each file and mode")
    given = arguments.parse_args()
    figures = {}
    with folder_of(given) as folder:
        for name, codec, options, width, height, fps in FILES:
            path = folder / name
            if not path.exists():
                frames = LENGTH_S * fps
                encode_pattern(path, codec, options, num_frames=frames, width=width, height=height, fps=fps)
        took_s: dict[tuple[str, str], list[float]] = {(name, mode): [] for name, *_ in FILES for mode in INPUT_PX}
        for _ in range(given.repeats):
            for (name, mode), times in took_s.items():
                times.append(core_seconds(folder / name, mode))
    for (name, mode), times in took_s.items():
        median_s = statistics.median(times)
        figures[f"{name}, {mode}"] = {
            "core seconds": [round(time_s, 3) for time_s in times],
            "clips per core second": round(Sampling().num_clips(mode) / median_s, 1),
        }
    report("decoding_modes", given, figures)


if __name__ == "__main__":
    main()
