"""The pipeline on sample videos that are made on the spot."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from typing import Any

from scale_ray.backbones import load_backbone
from scale_ray.config import DEMO, DemoConfig
from scale_ray.console import Console
from scale_ray.errors import UserError
from scale_ray.files.locations import showable
from scale_ray.stages.pipeline import PipelineResult, pipeline
from scale_ray.stages.sample_videos import sample_videos
from scale_ray.tracking import tracking_uri


@dataclass(frozen=True)
class DemoResult(PipelineResult):
    """The pipeline's result, and where its MLflow runs are."""

    tracking_uri: str = ""
    runs: str = ""

    def lines(self) -> list[str]:
        show = f"{_own_command()} ui --runs {self.runs}"
        return [*super().lines(), f"MLflow runs: {self.tracking_uri}", f"open them:   {show}"]

    def values(self) -> dict[str, Any]:
        return {**super().values(), "tracking_uri": self.tracking_uri}


def demo(folder: str, videos_per_class: int, epochs: int, *, config: DemoConfig, console: Console) -> DemoResult:
    """Make sample videos in `folder`, if they are not there, and run the pipeline on them."""
    folder = os.path.abspath(folder)
    videos, store, runs = (os.path.join(folder, name) for name in ("videos", "store", "runs"))
    sample_videos(videos, videos_per_class, console=console)
    whole = replace(DEMO.replaced(epochs=epochs), tracking=config.tracking, cluster=config.cluster)
    try:
        load_backbone(whole.backbone, whole.sampling.frames)
    except UserError:
        console.say(
            f"The pretrained weights of {whole.backbone.backbone} cannot be downloaded here: seeded random ones are "
            "used instead."
        )
        whole = whole.replaced(weights="none")
    result = pipeline(videos, store, "demo", runs=runs, config=whole, console=console)
    uri = showable(tracking_uri(config.tracking, runs))
    return DemoResult(result.run, result.probes, result.seconds, uri, runs)


def _own_command() -> str:
    """How this program is called from here: by its name if its environment is activated."""
    beside = os.path.join(os.path.dirname(sys.executable), "scale-ray")
    if shutil.which("scale-ray") or not os.path.exists(beside):
        return "scale-ray"
    return os.path.relpath(beside)
