"""Quantities: numbers formatted for pages, tables and messages, each with its unit."""

import math

MISSING = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """Format a percentage: `8.27 %`."""
    return MISSING if value is None else f"{value:.{digits}f} %"


def count(value: int | None) -> str:
    """Format an integer: `269,722`."""
    return MISSING if value is None else f"{value:,}"


def number(value: float | None, digits: int = 4) -> str:
    """Format a number with `digits` significant digits: `0.3121`, `1e-5`, `12,340`."""
    if value is None:
        return MISSING
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 1e-4:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def duration(seconds: float | None) -> str:
    """Format a duration: `8.3 s`, `17 min 36 s`, `5 h 07 min`, `2 d 03 h`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


def roughly(seconds: float) -> str:
    """Format an estimated duration, coarsely: `50 s`, `38 min`, `5 h 07 min`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else duration(seconds)


def size(value: int | None) -> str:
    """Format bytes in decimal units, like a memory budget: `12.3 MB`, `611 MB`, `1.24 GB`."""
    if value is None:
        return MISSING
    if value < 999.5e6:
        return f"{value / 1e6:.{0 if value >= 99.95e6 else 1}f} MB"
    return f"{value / 1e9:.2f} GB"


def shortened(text: str, letters: int) -> str:
    """Shorten a text to `letters` characters: a third from its beginning, two thirds from its end."""
    if len(text) <= letters:
        return text
    begin = (letters - 1) // 3
    return f"{text[:begin]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (letters - 1 - begin) :]}"
