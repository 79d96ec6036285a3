"""The report: one HTML page that shows what a build decided, and why."""

from packager.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
