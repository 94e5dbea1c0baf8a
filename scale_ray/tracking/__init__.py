"""Runs: their folders, and MLflow."""

from scale_ray.tracking.mlflow import (
    Experiment,
    save_video_model,
    server_command,
    server_environment,
    tracking_uri,
)
from scale_ray.tracking.run_folder import RunFolder, aggregator_of, run_folder_of
from scale_ray.tracking.run_record import RunRecord

__all__ = [
    "Experiment",
    "RunFolder",
    "RunRecord",
    "aggregator_of",
    "run_folder_of",
    "save_video_model",
    "server_command",
    "server_environment",
    "tracking_uri",
]
