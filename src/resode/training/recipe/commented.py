"""Commented: an experiment as YAML in which every key has its description as a comment.

# he_resnet20, 269,722 parameters
epochs: 182  # Number of passes over the training images.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from resode.training.recipe.experiment import Experiment
from resode.training.recipe.keys import Key, keys

COLUMN = 40  # where comments begin, where the line is shorter
LONGEST = 100  # characters of a list on one line; a longer one has a line for each item


def commented(experiment: Experiment, facts: Iterable[str] = ()) -> str:
    """YAML from which `Experiment.from_recipe` reads an equal experiment.

    Args:
        experiment: what is written, with every default.
        facts: lines of the comment at the top.
    """
    head = [f"# {line}".rstrip() for line in facts]
    return "\n".join([*head, *_lines(experiment.model_dump(mode="json"), keys(Experiment), 0)]) + "\n"


def _lines(values: Mapping[str, Any], known: Iterable[Key], depth: int) -> Iterator[str]:
    described = {key.path.rpartition(".")[2]: key for key in known}
    for name, value in values.items():
        key, indent = described.get(name), "  " * depth
        if isinstance(value, dict) and value:
            yield _commented(f"{indent}{_yaml(name)}:", key)
            below = [] if key is None else key.subkeys()
            yield from _lines(
                value, [sub for sub in below if sub.variant in ("", value.get("name"))], depth + 1
            )
        elif isinstance(value, list) and len(_yaml(value)) > LONGEST:
            yield _commented(f"{indent}{_yaml(name)}:", key)
            yield from (f"{indent}  - {_yaml(item)}" for item in value)
        else:
            yield _commented(f"{indent}{_yaml(name)}: {_yaml(value)}", key)


def _commented(text: str, key: Key | None) -> str:
    return f"{text.ljust(COLUMN)}  # {key.description}" if key is not None and key.description else text


def _yaml(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
