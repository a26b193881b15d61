"""`resode explain`: every key that a recipe or a study may set."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from resode.cli import completion
from resode.cli.listing import listing, say, width
from resode.cli.options import PluginOption
from resode.errors import InputError, nearest
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from resode.training.recipe.keys import Key


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]",
            help="Which key, such as optimizer.lr (default: all).",
            autocompletion=completion.keys,
        ),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Explain the keys of a recipe: what each may be, its default, the keys below it.

    `model`, `field`, `integrator` and `gradient` with a name explain the options of what is registered by
    that name, `study` the keys of a study file.

    Examples:

        resode explain

        resode explain optimizer.lr

        resode explain schedule

        resode explain model.he_resnet20

        resode explain model.widths

        resode explain integrator.rk4

        resode explain study.slurm

    \f
    """
    load_plugins(plugin)
    path = key or ""
    kind, _, rest = path.partition(".")
    if kind == "study":
        from resode.study.definition import Study

        say(_explained(Study, rest, "study"))
    elif kind in ("field", "integrator", "gradient") or (kind == "model" and rest not in ("", "name")):
        say(_registered(kind, rest))
    else:
        from resode.training.recipe.experiment import Experiment

        say(_explained(Experiment, path))


def _explained(section: type, path: str, origin: str = "") -> str:
    """All keys of a section, or one key and what is below it."""
    from resode.training.recipe.keys import every_key, every_path, find, keys, variant

    if not path:
        return _table(every_key(section))
    found = find(section, path)
    if not found:
        last, paths = path.rpartition(".")[2], every_path(section)
        same = next((other for other in paths if other.rpartition(".")[2] == last), None)
        hint = f"; did you mean '{same}'?" if same else nearest(path, paths)
        command = f"resode explain {origin}".strip()
        raise InputError(f"no key '{path}'{hint} (`{command}` lists all)")
    blocks = [_one(each) for each in found]
    for each in found:
        for below in each.sections:
            title = variant(below)
            head = f"{each.path}.name={title}: " if title else ""
            text = "\n".join(_paragraphs(below.__doc__ or ""))
            blocks.append(f"{head}{text}\n\n{_table(keys(below, each.path))}")
    if path == "model":
        blocks.append(
            "`resode explain model.NAME` lists the options of a model, `resode list models` the names."
        )
    return "\n\n".join(dict.fromkeys(blocks))


def _paragraphs(docstring: str) -> Iterator[str]:
    yield from (line.strip() for line in docstring.strip().splitlines())


def _one(key: "Key") -> str:
    default = f"; default: {key.default}" if key.default else "; has to be given"
    if key.sections and key.default.startswith("{"):
        default = ""  # those of the keys below
    return f"{_label(key)}\n    {key.description}\n    {key.values}{default}"


def _table(keys: "list[Key]") -> str:
    rows = [(_label(key), _short(key.default), f"{key.description} [{key.values}]") for key in keys]
    return listing(("key", "default", ""), list(dict.fromkeys(rows)), width=width())


def _label(key: "Key") -> str:
    """The path of a key, and the variant to which it belongs."""
    return f"{key.path} ({key.variant})" if key.variant and not key.path.endswith(".name") else key.path


def _short(default: str) -> str:
    """A default that a column has room for."""
    return default if len(default) <= 24 else "{...}" if default.startswith("{") else f"{default[:23]}…"


def _registered(kind: str, name: str) -> str:
    """The options of a registered name; or of every name that has an option of this name."""
    from resode.training.recipe.options import options_of, registry

    known = registry(kind)
    if not name:
        names = ", ".join(known.names())
        return f"`resode explain {kind}.NAME` lists the options of one of: {names}"
    if name in known.names() or not _owners(kind, name):
        entry = known.entry(name)
        rows = [(o.name, o.default or "has to be given", o.description) for o in options_of(kind, name)]
        title = f"{kind} {name}: {entry.summary}" if entry.summary else f"{kind} {name}"
        return (
            f"{title}\n\n{listing(('option', 'default', ''), rows, width=width()) if rows else 'no options'}"
        )
    rows = [(f"{kind}.{owner}", default, text) for owner, default, text in _owners(kind, name)]
    return listing((f"option '{name}' of", "default", ""), rows, width=width())


def _owners(kind: str, option: str) -> list[tuple[str, str, str]]:
    """(name, default, description) of everything of a kind that has an option of this name."""
    from resode.training.recipe.options import options_of, registry

    return [
        (name, each.default or "has to be given", each.description)
        for name in registry(kind).names()
        for each in options_of(kind, name)
        if each.name == option
    ]
