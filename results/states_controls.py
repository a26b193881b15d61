"""Gather the runs of the study of states and controls into states_controls.json beside this file.

resode study experiments/states-controls.yaml && python results/states_controls.py studies/states-controls
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from resode import report


def record(study: Path) -> dict[str, Any]:
    """A row for each finished run: scheme, steps, seed, error on the held-out images, cost."""
    groups = report.read_study(study).groups
    finished = [run for group in groups for run in group.finished.values()]
    rows = []
    for run in finished:
        model = yaml.safe_load(run.experiment_text)["model"]
        error, result = run.result.validation, run.result
        assert error is not None
        rows.append(
            {
                "scheme": model["scheme"],
                "states": model["states"]["steps"],
                "controls": model["controls"]["steps"],
                "seed": result.seed,
                "validation_error": round(error.top1_error, 4),
                "samples": error.samples,
                "parameters": result.parameters,
                "evaluations": run.epochs[-1].function_evaluations,
                "seconds": round(result.seconds or 0.0, 1),
            }
        )
    rows.sort(key=lambda row: (row["scheme"], row["states"], row["controls"], row["seed"]))
    environment = {k: v for k, v in finished[0].environment.items() if k != "command"}
    command = "resode study experiments/states-controls.yaml"
    return {"command": command, "environment": environment, "runs": rows}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = record(Path(sys.argv[1]))
    out = Path(__file__).with_name("states_controls.json")
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {len(found['runs'])} runs")
