"""A folder to sample videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_ray.config import DEMO_VIDEOS_PER_CLASS
from scale_ray.console import Console, Result
from scale_ray.corpus import read_corpus
from scale_ray.corpus.sample_videos import BROKEN, MOTIONS, make_samples

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SampleVideos(Result):
    """A folder of sample videos; other stages take it as their videos."""

    folder: str
    num_files: int

    def __fspath__(self) -> str:
        return self.folder

    def lines(self) -> list[str]:
        return [f"{self.num_files} sample videos in {self.folder}"]

    def values(self) -> dict[str, Any]:
        return {"folder": self.folder, "num_files": self.num_files}

    def to_pandas(self) -> pd.DataFrame:
        """A row per file: its id, path, size, label and split."""
        return read_corpus(self.folder).videos.to_pandas()


def sample_videos(
    folder: str, videos_per_class: int = DEMO_VIDEOS_PER_CLASS, *, broken: bool = True, console: Console
) -> SampleVideos:
    """Make small labelled videos of moving shapes, in four classes, unless the folder already holds them.

    With `broken`, three more files follow that no decoder can use.
    """
    num_files = videos_per_class * len(MOTIONS) + len(BROKEN) * broken
    path = Path(folder)
    if not path.is_dir() or sum(file.is_file() for file in path.rglob("*")) != num_files:
        with console.progress("sample videos", num_files, "files") as progress:
            for count, _ in enumerate(make_samples(path, videos_per_class, broken=broken), 1):
                progress.to(count)
    return SampleVideos(folder, num_files)
