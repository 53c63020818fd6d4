"""Figures and the self-contained HTML report, from results.json alone."""

from morphfed.reporting.report import write_report

__all__ = ["write_report"]
