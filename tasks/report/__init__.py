"""A run's report: one HTML page, made from what SQL answers about it."""

from tasks.report.page import report_path, write_report

__all__ = ["report_path", "write_report"]
