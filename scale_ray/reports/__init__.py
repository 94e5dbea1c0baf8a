"""Reports of results: figures, contact sheets, the files of a probe report, and the figures and page of a sweep."""

from scale_ray.reports.contact_sheet import Tile, contact_sheet, frames_of, thumbnails
from scale_ray.reports.figures import losses_figure
from scale_ray.reports.probe_report import probe_metrics, report_pictures, report_tables
from scale_ray.reports.sweep_data import option_importance
from scale_ray.reports.sweep_description import search_description, sweep_description
from scale_ray.reports.sweep_figures import sweep_figures
from scale_ray.reports.sweep_page import sweep_page
from scale_ray.reports.sweep_tables import setting_rows, sweep_tables

__all__ = [
    "Tile",
    "contact_sheet",
    "frames_of",
    "losses_figure",
    "option_importance",
    "probe_metrics",
    "report_pictures",
    "report_tables",
    "search_description",
    "setting_rows",
    "sweep_description",
    "sweep_figures",
    "sweep_page",
    "sweep_tables",
    "thumbnails",
]
