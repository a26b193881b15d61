"""A comparison as records, CSV, Markdown and cells of a table."""

import csv
import io
from typing import Any

from resode.quantities import MISSING, count, duration, number, percent, size
from resode.report.comparison import Comparison, Row
from resode.report.statistics import Difference, Mean

COLUMNS = (
    "arm", "n", "test_error", "test_deviation", "test_low", "test_high", "validation_error",
    "validation_deviation", "difference", "difference_low", "difference_high", "p", "common_seeds",
    "published_error", "published_as", "parameters", "multiply_adds", "evaluations", "seconds",
    "peak_memory_bytes",
)  # fmt: skip


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """The rows as dictionaries with the keys `COLUMNS`."""
    found = []
    for row in comparison.rows:
        test, validation, difference = row.test, row.validation, row.difference
        values = (
            row.name, _runs(row, comparison.split), test and test.mean, test and test.deviation,
            test and test.low, test and test.high, validation and validation.mean,
            validation and validation.deviation,
            difference and difference.mean, difference and difference.low, difference and difference.high,
            difference and difference.p, difference and len(difference.seeds), row.published,
            row.published_as or None, row.parameters, row.multiply_adds, row.evaluations, row.seconds,
            row.peak_memory_bytes,
        )  # fmt: skip
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def as_csv(comparison: Comparison) -> str:
    """The rows as CSV; unknown values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(comparison))
    return text.getvalue()


HEADS = ("arm", "n", "test error", "validation error", "difference to first", "published", "parameters",
         "multiply-adds", "evaluations", "time", "memory")  # fmt: skip
COSTS = HEADS[6:]


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and rows as text, without empty columns."""
    rows = [
        [
            row.name,
            str(_runs(row, comparison.split)),
            _mean(row.test),
            _mean(row.validation),
            _difference(row.difference),
            percent(row.published) + (f" ({row.published_as})" if row.published_as else ""),
            count(row.parameters),
            MISSING if row.multiply_adds is None else f"{row.multiply_adds / 1e6:,.1f} M",
            number(row.evaluations),
            duration(row.seconds),
            size(row.peak_memory_bytes),
        ]
        for row in comparison.rows
    ]
    shown = [place for place in range(len(HEADS)) if any(row[place] != MISSING for row in rows)]
    return [HEADS[place] for place in shown], [[row[place] for place in shown] for row in rows]


def as_markdown(comparison: Comparison, *, brief: bool = False) -> str:
    """The table as Markdown, with remarks (`brief`: folded) and legend below it."""
    remarks = comparison.brief if brief else comparison.remarks
    heads, rows = cells(comparison)
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {text}" for text in (*remarks, legend(comparison)))]) + "\n"


def legend(comparison: Comparison) -> str:
    """One line that explains the errors and differences."""
    return (
        "Each arm shows the error of its last epoch: mean \N{PLUS-MINUS SIGN} standard deviation "
        "[95 % interval of the mean: Student's t, bootstrap from 30 runs on]. Differences to the first arm "
        f"are points of {comparison.split} error, paired over common seeds [95 % interval, Student's t]."
    )


def _runs(row: Row, split: str) -> int:
    """Number of runs with an error on `split`."""
    found = row.on(split)
    return len(row.seeds) if found is None else found.n


def _mean(found: Mean | None) -> str:
    if found is None:
        return MISSING
    spread = "" if found.deviation is None else f" \N{PLUS-MINUS SIGN} {found.deviation:.2f}"
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.mean:.2f}{spread} %{interval}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return MISSING
    if found.low is None:
        over = "one seed" if len(found.seeds) == 1 else f"the same for {len(found.seeds)} seeds"
        return f"{found.mean:+.2f} ({over})"
    p = "" if found.p is None else f", p {found.p:.2g}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]{p}"
