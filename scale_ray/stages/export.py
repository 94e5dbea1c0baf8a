"""An aggregator and its backbone to one MLflow model."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scale_ray.aggregator import Aggregator
from scale_ray.config import ExportConfig
from scale_ray.console import Console, Result
from scale_ray.embedding import VideoModel, backbone_note
from scale_ray.errors import UserError
from scale_ray.files.locations import absolute
from scale_ray.tracking import Experiment, aggregator_of, save_video_model

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ExportResult(Result):
    """The folder of an exported model, and the name under which it was registered, if it was."""

    model: str
    registered: str | None

    def lines(self) -> list[str]:
        serve = f"mlflow models serve -m {self.model} --env-manager local --host 127.0.0.1 --port 5001"
        return [f"model: {self.model}", f"serve it: SCALE_RAY_SERVED_VIDEOS=FOLDER {serve}"]

    def values(self) -> dict[str, Any]:
        return {"model": absolute(self.model), "registered": self.registered}

    def to_pandas(self) -> pd.DataFrame:
        """One row: `model` and `registered`."""
        import pandas as pd

        return pd.DataFrame([self.values()])


def export(checkpoint: str, out: str, *, runs: str = "runs", config: ExportConfig, console: Console) -> ExportResult:
    """Write backbone, aggregator and sampling as one MLflow model to the folder `out`: paths in, vectors out.

    Raises
    ------
    UserError
        If there is no such aggregator, its backbone cannot be loaded, or the folder has files already.
    """
    location = aggregator_of(checkpoint, runs)
    if os.path.exists(out) and os.listdir(out):
        raise UserError(f"--out: expected an empty folder or none, found files at {out}")
    aggregator = Aggregator.load(location)
    if note := backbone_note(aggregator.origin):
        console.say(note)
    model = VideoModel.from_aggregator(aggregator, config.representing, **vars(config.source))
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "scale_ray_model")
        model.save(data)
        save_video_model(absolute(out), data)
    if config.tracking.register is not None:
        options = {"checkpoint": location, "representing": config.representing.to_dict()}
        with Experiment(config.tracking, runs, console).start(f"export of {checkpoint}", options) as record:
            record.model(absolute(out), config.tracking.register)
    return ExportResult(out, config.tracking.register)
