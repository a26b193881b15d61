"""Reports: a run or a folder of runs as a self-contained HTML page or a small table for the terminal."""

from resode.report.page import write
from resode.report.study import is_study
from resode.report.study import read as read_study
from resode.report.study import write as write_study
from resode.report.terminal import table

__all__ = ["is_study", "read_study", "table", "write", "write_study"]
