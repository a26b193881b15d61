"""Write `resode/catalogue.json`: names, options and costs of the package's models, weights and recipes.

python results/catalogue.py

Run it after a change of a model, of a recipe, or of how costs are counted; it takes a minute.
"""

import json

from resode import atomic, catalogue
from resode.analysis.costs import for_catalogue


def text() -> str:
    """The catalogue as JSON, a line for each name."""
    groups = []
    for group, entries in for_catalogue().items():
        lines = [
            f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in entries.items()
        ]
        groups.append(f"{json.dumps(group)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{" + ",\n".join(groups) + "}\n"


if __name__ == "__main__":
    atomic.write_text(catalogue.FILE, text())
