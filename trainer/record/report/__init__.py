"""The evaluation of a split as a folder: numbers, a line per picture, figures, and a page to read or send."""

from trainer.record.report.writer import Report, write_report

__all__ = ["Report", "write_report"]
