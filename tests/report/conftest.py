"""Run directories as training leaves them, whole or in part."""

import copy
import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from resode.models import create
from resode.weights import Card, Preprocessing, Specification, save

EXPERIMENT = {
    "name": "mine/resnet20",
    "about": {
        "summary": "A network of twenty layers.",
        "published": {"top1_error": 8.75, "source": "He et al. 2016, table 6"},
    },
    "model": {"name": "he_resnet20"},
    "data": {"source": "cifar10", "validation": 100},
    "epochs": 4,
    "batch_size": 128,
    "seed": 7,
    "precision": "bf16",
}

SUMMARY = {
    "status": "finished",
    "name": "mine/resnet20",
    "model": "he_resnet20",
    "parameters": 269722,
    "seed": 7,
    "epochs": 4,
    "iterations": 1408,
    "train": {"loss": 0.31, "accuracy": 89.5},
    "validation": {"loss": 0.4, "top1_accuracy": 87.0, "top1_error": 13.0, "samples": 100},
    "test": {
        "top1_error": 12.5,
        "top1_accuracy": 87.5,
        "loss": 0.41,
        "samples": 40,
        "precision": "fp32",
        "per_class": {"cat": 80.0, "dog": 95.0},
        "confusion": [[16, 4], [1, 19]],
    },
    "seconds": 421.0,
    "training_seconds": 400.0,
    "images_per_second": 430.5,
    "peak_memory_bytes": 640741376,
    "data": {
        "name": "cifar10",
        "fingerprint": "5f1c8a90",
        "train": 400,
        "validation": 100,
        "test": 40,
        "skipped": ["train/cat/broken.png: not an image"],
    },
    "published": {"top1_error": 8.75, "source": "He et al. 2016, table 6"},
    "expected": "8.3 to 8.8 % test error",
    "precision": "bf16",
    "compile": True,
}

ENVIRONMENT = {
    "python": "3.11.9",
    "cpu": "A processor",
    "gpu": None,
    "memory_bytes": 2**34,
    "command": ["resode", "train", "a b"],
}


def epoch(number: int, **values: Any) -> dict[str, Any]:
    return {
        "epoch": number,
        "iterations": 352 * number,
        "learning_rate": 0.1,
        "train_loss": 2.0 / number,
        "train_accuracy": 100 - 60 / number,
        "validation_loss": 1.8 / number,
        "validation_accuracy": 100 - 52 / number,
        "seconds": 100.0,
        "images_per_second": 430.5,
        "peak_memory_bytes": 640741376,
    } | values


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run directory; None leaves a file out, text is written as it is."""

    def write(
        name: str = "run",
        *,
        experiment: Mapping[str, Any] | str | None = EXPERIMENT,
        environment: Mapping[str, Any] | str | None = ENVIRONMENT,
        epochs: int | list[dict[str, Any]] | str | None = 4,
        summary: Mapping[str, Any] | str | None = SUMMARY,
    ) -> Path:
        path = tmp_path / name
        path.mkdir()
        if experiment is not None:
            text = experiment if isinstance(experiment, str) else yaml.safe_dump(dict(experiment))
            (path / "experiment.yaml").write_text(text)
        for file, value in (("environment.json", environment), ("summary.json", summary)):
            if value is not None:
                (path / file).write_text(value if isinstance(value, str) else json.dumps(value))
        if isinstance(epochs, str):
            (path / "metrics.csv").write_text(epochs)
        elif epochs is not None:
            rows = [epoch(k + 1) for k in range(epochs)] if isinstance(epochs, int) else epochs
            with (path / "metrics.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(epoch(1)), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        (path / "checkpoints" / "1408").mkdir(parents=True)
        (path / "model.safetensors").touch()
        return path

    return write


PREPROCESSING = Preprocessing((0.5,) * 3, (0.2,) * 3, (32, 32), 3, tuple("0123456789"))


@pytest.fixture
def arm(make_run):
    """Write the runs of an arm: an error for each seed, and what its experiment has of its own."""

    def write(folder, errors, /, *, finished=True, **own):
        paths = []
        for seed, error in errors.items():
            experiment, summary = copy.deepcopy(EXPERIMENT), copy.deepcopy(SUMMARY)
            experiment |= {"seed": seed, **own}
            experiment["data"] = {**experiment["data"], "mean": [seed / 10]}
            summary |= {"seed": seed, "test": {"top1_error": error, "samples": 40}}
            run = make_run(f"{folder}-{seed}", experiment=experiment, summary=summary if finished else None)
            options = {k: v for k, v in experiment["model"].items() if k != "name"}
            name = experiment["model"]["name"]
            save(create(name, **options), run / "model.safetensors", Card(
                Specification(name, options), PREPROCESSING
            ))  # fmt: skip
            paths.append(run)
        return paths

    return write
