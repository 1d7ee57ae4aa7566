"""A run's report: one HTML page, made from what SQL answers about it."""

from tasks.report.page import write_report

__all__ = ["write_report"]
