"""Plugins: Python files of the user's that register models, fields, integrators, data or activations.

    from resode.plugins import load_plugins

    load_plugins(["examples/plugin.py"])
    net = resode.create("dynamic", stages=[{"width": 16, "field": "reaction", "states": 4}])

`--plugin FILE` of the commands does the same. A file that a recipe or a stored run merely names is never run.
"""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from resode import atomic
from resode.errors import InputError


def load_plugins(files: Iterable[str | Path] | None) -> list[dict[str, str]]:
    """Run Python files, once each.

    Returns:
        Path and SHA-256 of each, as the setting `plugins` records them.

    Raises:
        InputError: a file is missing, is no Python file, or raises.
    """
    loaded = []
    for number, file in enumerate(dict.fromkeys(Path(file).expanduser().resolve() for file in files or ())):
        if not file.is_file():
            raise InputError(f"plugin {file}: no such file")
        name = f"resode_plugin_{number}_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise InputError(f"plugin {file}: is no Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"plugin {file}: {type(error).__name__}: {error}") from error
        loaded.append({"path": str(file), "sha256": atomic.sha256(file)})
    return loaded
