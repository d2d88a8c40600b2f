"""Runs on a page: curves, times, settings, and what the images show."""

from reid_fast.report.charts import Chart, curves, stage_times
from reid_fast.report.page import report_page
from reid_fast.report.runs import RunRecord, read_runs
from reid_fast.report.seen import Seen, look

__all__ = ["Chart", "RunRecord", "Seen", "curves", "look", "read_runs", "report_page", "stage_times"]
