"""Gather finished runs of three hundred iterations into first_iterations.json, an entry for each recipe.

python results/first_iterations.py runs/first/*      (run directories)

Each run is: resode train RECIPE --data cifar10 --set epochs=1 --set batch_size=128
--set data.validation=11600 --precision fp32 (38,400 images in 300 steps; the others are held out).
"""

import json
import sys
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "first_iterations.json"
KEPT = ("commit", "torch", "cpu", "threads", "device")


def record(folder: Path) -> dict[str, Any]:
    """The record of one run."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    if summary["iterations"] != 300 or summary["test"]["samples"] != 10_000:
        raise SystemExit(f"{folder}: {summary['iterations']} iterations, expected 300")
    return {
        "recipe": summary["name"],
        "model": summary["model"],
        "parameters": summary["parameters"],
        "iterations": summary["iterations"],
        "seed": summary["seed"],
        "top1_accuracy": round(summary["test"]["top1_accuracy"], 4),
        "validation_accuracy": round(summary["validation"]["top1_accuracy"], 4),
        "seconds": summary["seconds"],
        "environment": {key: environment[key] for key in KEPT},
    }


if __name__ == "__main__":
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    by_recipe = {item["recipe"]: item for item in known}
    for name in sys.argv[1:]:
        made = record(Path(name))
        by_recipe[made["recipe"]] = made
    ordered = [by_recipe[name] for name in sorted(by_recipe)]
    RECORD.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
