"""Gate of a restructuring: short trainings end in the same bits at two versions of the sources.

Each training runs by the command line of each version, in fp32, eager, on one thread, in a process of its
own. Compared are a SHA-256 over names, shapes and bytes of the final weights, and the losses of metrics.csv.

    git worktree add ../base COMMIT
    python benchmarks/same_numbers.py ../base/src src [--only twist,adjoint] [--json]

Both versions run on this machine: bits differ between kinds of processor. `RESODE_DATA` names the folder with
CIFAR-10, of which the first images are used; without it the trainings that need it are skipped.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file

COLUMNS = ("train_loss", "validation_loss")
DIGITS = {"source": "digits", "validation": 0.15}
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
DIGITS_NET = {"widths": [8, 8], "states": [0, 1, 2]}
THREE = {"widths": [8, 8, 8]}
STAGE = {"width": 8, "field": {"name": "parabolic", "norm": "tv"}, "states": 3}


def _dynamic(*integrators: Any, **options: Any) -> dict[str, Any]:
    """A network with one stage for each integrator."""
    return {"name": "dynamic", "stages": [{**STAGE, "integrator": each, **options} for each in integrators]}


# By name: the keys of the experiment that are not the common ones of `experiment`.
TRAININGS: dict[str, dict[str, Any]] = {
    "he": {
        "data": "cifar",
        "model": {"name": "he_resnet20"},
        "augment": {"crop": 4, "flip": True},
        "optimizer": {**SGD, "weight_decay": 1e-4},
        "schedule": {"name": "multistep"},
    },
    "stored": {"model": {"name": "dynamicblocks", "scheme": "rk4", **DIGITS_NET}},
    "checkpointed": {
        "model": {
            "name": "dynamicblocks", "scheme": "rk4", **DIGITS_NET, "norm": "batch",
            "gradient": "checkpointed",
        },
    },
    "reversible": {
        "model": {"name": "ruthotto_haber", "kind": "hamiltonian", **THREE, "gradient": "reversible"},
    },
    "adjoint": {"model": {"name": "dynamicblocks", "scheme": "rk4", **DIGITS_NET, "gradient": "adjoint"}},
    "adaptive": {"model": {"name": "neural_ode", **THREE}},
    "schemes": {
        "model": _dynamic(
            "adams_bashforth2", "learned_two_step", "two_step_midpoint", "leapfrog", "momentum", "imex",
            "ssprk3",
        ),
        "clip_norm": 1.0,
    },
    "partitioned": {
        "model": _dynamic(
            "stormer_verlet", "coupling", field={"name": "hamiltonian", "norm": "tv"}, gradient="reversible"
        ),
    },
    "revnet": {"model": {"name": "revnet38", "gradient": "reversible"}, "epochs": 2},
    "twist": {
        "model": {"name": "digits_resnet8", "widths": [8, 8, 16]},
        "twist": [{"at": 0.4, "tie": "conformal"}],
    },
    "refine": {
        "model": {"name": "dynamicblocks", "scheme": "euler", **DIGITS_NET, "norm": "batch"},
        "refine": [{"at": 0.5}],
        "smoothness": {"dirichlet": 0.1, "total_variation": 0.01},
        "box": 0.5,
    },
    "muon": {
        "data": "cifar",
        "model": {"name": "he_resnet20"},
        "augment": {"crop": 4, "padding": "reflect", "flip": "alternate"},
        "optimizer": {"name": "muon", "lr": 0.025},
        "schedule": {"name": "onecycle", "peak": 0.25},
        "sizes": [{"until": 0.4, "size": 16}, {"until": 0.75, "size": 24}],
        "label_smoothing": 0.1,
    },
    "mixup": {
        "model": {"name": "digits_resnet8", "widths": [8, 8, 16]},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "augment": {"crop": 1, "mixup": 0.2, "cutout": 2},
        "average": {"decay": 0.9, "samples": 512},
    },
    "budget": {"model": {"name": "he_resnet32"}, "memory_budget": "40MB"},
}  # fmt: skip


def experiment(name: str, cifar: Path | None) -> dict[str, Any]:
    """The settings of a training."""
    given = dict(TRAININGS[name])
    source = {"source": str(cifar), "validation": 128} if given.pop("data", "") == "cifar" else DIGITS
    common: dict[str, Any] = {
        "name": name, "data": source, "optimizer": SGD, "schedule": {"name": "cosine"}, "epochs": 3,
        "batch_size": 128,
        "precision": "fp32", "compile": False, "device": "cpu", "seed": 1, "augment": {"crop": 1},
    }  # fmt: skip
    return {**common, **given}


def part_of_cifar(folder: Path) -> Path | None:
    """A folder with the first 640 training and 256 test images of CIFAR-10; None without RESODE_DATA."""
    root = os.environ.get("RESODE_DATA")
    if not root:
        return None
    made = folder / "cifar"
    made.mkdir()
    for part, rows in (("train", 640), ("test", 256)):
        first = min((Path(root) / "cifar10").glob(f"{part}-*.parquet"))
        pq.write_table(pq.read_table(first).slice(0, rows), made / f"{part}-00000-of-00001.parquet")
    return made


def trained(source: Path, settings: Path, out: Path) -> dict[str, Any]:
    """Digest and losses of a training by the sources in a folder."""
    environment = {
        **os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1",
        "RESODE_CACHE": str(out.parent / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", "resode", "train", str(settings), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip()[-600:]}
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "weights": digest(out / "model.safetensors"),
        "losses": {name: [row[name] for row in rows] for name in COLUMNS},
    }


def digest(path: Path) -> str:
    """SHA-256 over names, shapes and bytes of all tensors, in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        total.update(
            f"{name} {tensor.dtype} {tensor.shape}".encode() + np.ascontiguousarray(tensor).tobytes()
        )
    return total.hexdigest()


def distance(one: Path, other: Path) -> float | None:
    """The largest |difference| over the largest |value| of a tensor; None where names or shapes differ."""
    mine, its = load_file(one), load_file(other)
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in its.items()}:
        return None
    return max(
        float(np.abs(v - its[k]).max() / max(np.abs(v).max(), 1e-30)) for k, v in mine.items() if v.size
    )


def main() -> None:
    """Train, compare, print; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="folder that holds the earlier `resode` package")
    parser.add_argument("now", type=Path, help="folder that holds the later one")
    parser.add_argument("--only", default=",".join(TRAININGS), help="names of trainings")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    table, differing = {}, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cifar = part_of_cifar(folder)
        for name in arguments.only.split(","):
            if TRAININGS[name].get("data") == "cifar" and cifar is None:
                print(f"{name:<14}skipped: set RESODE_DATA", file=sys.stderr)
                continue
            settings = folder / f"{name}.yaml"
            settings.write_text(yaml.safe_dump(experiment(name, cifar)), encoding="utf-8")
            places = {"base": folder / name / "base", "now": folder / name / "now"}
            found = {key: trained(getattr(arguments, key), settings, place) for key, place in places.items()}
            same = found["base"] == found["now"] and "error" not in found["base"]
            differing += not same
            line = "same" if same else "DIFFERS"
            if not same and all("weights" in each for each in found.values()):
                by = distance(*(place / "model.safetensors" for place in places.values()))
                line += (
                    f": weights by {by:.1e} of a tensor's largest value"
                    if by is not None
                    else ": names or shapes"
                )
            errors = [f"{key}: {each['error']}" for key, each in found.items() if "error" in each]
            print(f"{name:<14}{line}", *errors, sep="\n    ", file=sys.stderr)
            table[name] = {"same": same, **found}
    if arguments.json:
        print(json.dumps(table, indent=2))
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
