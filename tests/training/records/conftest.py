"""Run directories for the tests of the reader."""

from tests.report.conftest import make_run

__all__ = ["make_run"]
