"""Report: a run directory -> one self-contained HTML page, or a small table for the terminal."""

from resode.report.page import write
from resode.report.run import Run, read
from resode.report.terminal import table

__all__ = ["Run", "read", "table", "write"]
