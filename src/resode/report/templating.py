"""Rendering of Jinja templates with autoescaping."""

import functools
from typing import Any

import jinja2

from resode import quantities

FILTERS = (
    quantities.count, quantities.duration, quantities.number, quantities.percent, quantities.size,
)  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Render a template of this package; an undefined variable is an error."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resode.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({write.__name__: write for write in FILTERS})
    return environment
