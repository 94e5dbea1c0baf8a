"""What the benchmarks share: their options, their videos, and the report with hardware, versions and date."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("ray", "torch", "torchvision", "av", "pyarrow", "numpy")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; the help starts with the first line of `description`."""
    arguments = argparse.ArgumentParser(
        description=(description or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arguments.add_argument("--folder", type=Path, help="folder for the videos, which are kept; temporary if not given")
    arguments.add_argument("--save", action="store_true", help="write the raw figures to benchmarks/results")
    return arguments


@contextmanager
def folder_of(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder given by --folder, or a temporary one."""
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        yield arguments.folder
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def report(name: str, arguments: argparse.Namespace, figures: Any) -> None:
    """Print the figures with hardware, versions and date; with --save also write them to `results/NAME.json`."""
    options = {key: value for key, value in vars(arguments).items() if key not in ("folder", "save")}
    record = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "options": options, "figures": figures}
    print(json.dumps(record, indent=1))
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def hardware() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30),
        "python": platform.python_version(),
        **{name: _version_of(name) for name in _LIBRARIES},
    }


def _version_of(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def make_video(
    path: Path, *, duration_s: int, key_every: int, width: int = 320, height: int = 240, fps: int = 30
) -> Path:
    """A video of a moving pattern in H.264; a longer one repeats its first ten seconds without encoding again."""
    if path.exists():
        return path
    ten_seconds = path.with_name(f"once-{key_every}-{width}x{height}.mp4")
    if not ten_seconds.exists():
        options = {"preset": "veryfast", "g": str(key_every), "keyint_min": str(key_every), "sc_threshold": "0"}
        encode_pattern(ten_seconds, "libx264", options, num_frames=10 * fps, width=width, height=height, fps=fps)
    import av  # imported here, since benchmarks/gpu.py runs without PyAV

    unfinished = path.with_suffix(".unfinished.mp4")
    with av.open(str(unfinished), "w") as out:
        target, shift = None, 0
        for _ in range(-(-duration_s // 10)):
            with av.open(str(ten_seconds)) as source:
                stream = source.streams.video[0]
                if target is None:
                    target = out.add_stream_from_template(stream)
                length = int(10 / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                    out.mux(packet)
            shift += length
    unfinished.rename(path)
    return path


def encode_pattern(
    path: Path, codec: str, options: dict[str, str], *, num_frames: int, width: int, height: int, fps: int
) -> None:
    """Write a video of a moving pattern, with the options of the encoder."""
    import av

    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 255, (height // 16 + 20, width // 16 + 20, 3), np.uint8)
    pattern = np.asarray(Image.fromarray(tiles).resize((width + 320, height + 320), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            x, y = int(100 + 90 * np.sin(number / 30)), int(100 + 90 * np.cos(number / 41))
            image = np.ascontiguousarray(pattern[y : y + height, x : x + width])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
