"""Reports of results: figures, contact sheets, and the files of a probe report."""

from scale_ray.reports.contact_sheet import Tile, contact_sheet, frames_of, thumbnails
from scale_ray.reports.figures import losses_figure
from scale_ray.reports.probe_report import probe_metrics, report_pictures, report_tables

__all__ = [
    "Tile",
    "contact_sheet",
    "frames_of",
    "losses_figure",
    "probe_metrics",
    "report_pictures",
    "report_tables",
    "thumbnails",
]
