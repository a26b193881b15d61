"""The wheel holds all that the program needs at run time, and nothing of the repository beside it."""

import subprocess
import sys
import zipfile
from pathlib import Path

from resode import recipes

ROOT = Path(__file__).parent.parent


def test_a_wheel_is_complete(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    needed = {f"resode/recipes/{name}.yaml" for name in recipes.files()}
    needed |= {
        "resode/data/assets/digits.csv.gz",
        "resode/data/assets/README.md",
        "resode/report/templates/depth_page.html",
        "resode/report/templates/run.html",
        "resode/report/templates/style.css",
    }
    assert needed | {"resode/py.typed", "resode/cli/__init__.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "results", "benchmarks"))]
