"""Outcome: the comparison of the finished runs of a study, written beside them."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from resode import atomic
from resode.report import study as studies
from resode.report import tables
from resode.report.comparison import Comparison, Row


@dataclass(frozen=True)
class Outcome:
    """A comparison, and the files that hold it."""

    comparison: Comparison
    markdown: Path
    csv: Path
    page: Path

    @property
    def best_on_validation(self) -> Row | None:
        """The arm of the least mean error on held-out images; None where no arm has one."""
        errors = {row: row.validation.mean for row in self.comparison.rows if row.validation is not None}
        return min(errors, key=errors.__getitem__, default=None)

    @property
    def test_seen(self) -> bool:
        """Whether a run has been evaluated on test images."""
        return any(row.test is not None for row in self.comparison.rows)


def write(folder: Path, runs: Collection[Path]) -> Outcome | None:
    """Compare the finished runs of a study; write comparison.md, comparison.csv and its page.

    Args:
        folder: of the study.
        runs: those to compare.

    Returns:
        None where no run is finished.

    Raises:
        ResodeError: runs that cannot be read, or files that cannot be written.
    """
    if not studies.is_study(folder):
        return None
    study = studies.read(folder).of_runs(runs)
    if study.comparison is None:
        return None
    markdown, csv = folder / "comparison.md", folder / "comparison.csv"
    atomic.write_text(markdown, tables.as_markdown(study.comparison))
    atomic.write_text(csv, tables.as_csv(study.comparison))
    return Outcome(study.comparison, markdown, csv, studies.write(study))
