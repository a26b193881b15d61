"""Does a twist help? Paired runs: the same seeds and the same order of the data, at matched cost.

    python experiments/twist.py                      all arms, seed 0, on CIFAR-10, under runs/twist
    python experiments/twist.py --arms plain,conformal --seeds 0,1,2
    python experiments/twist.py --record             also writes results/twist.json

Each run is `resode train short/resnet20 --data cifar10 --set data.validation=0` (10 epochs, all 50,000
training images) with another network; interrupted runs are resumed, finished ones are not repeated. The
final weights are evaluated on the 10,000 test images, and on the same images rotated by up to 30 degrees and
scaled by 0.7 to 1.3 (`cifar10-warped`), which no network saw in training.

    plain       ResNet-20 (He et al. 2016)
    wider       the same with as many parameters as the conformal twist
    widest      the same with as many multiply-adds as both twists, and as many parameters as the free one
    conformal   ResNet-20, every 3x3 convolution twisted, Wy tied to Wx: scaling and rotation
    free        ResNet-20, every 3x3 convolution twisted, Wx and Wy free

An effect is the error of an arm minus that of the plain network, in points. With two seeds or more, its 95 %
interval is Student's over the paired differences. With one seed it is over the test images only, from those
that exactly one of the two networks classifies correctly (McNemar), and does not include the variation
between seeds.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from resode import atomic, cost, weights
from resode.data import Loader, load
from resode.mode import mode

HERE = Path(__file__).resolve().parent.parent
ARMS: dict[str, list[str]] = {
    "plain": [],
    "wider": ["model.widths=[20, 38, 77]"],
    "widest": ["model.widths=[28, 55, 111]"],
    "conformal": ["model={name: twisted, of: he_resnet20, tie: conformal}"],
    "free": ["model={name: twisted, of: he_resnet20, tie: free}"],
}
DATA = ("cifar10", "cifar10-warped")
QUANTILE = 0.975


def train(arm: str, seed: int, out: Path, more: list[str]) -> None:
    """Train one arm with one seed, or resume it."""
    recipe = ["short/resnet20", "--data", "cifar10", "--set", "data.validation=0", "--set", f"seed={seed}"]
    changes = [part for change in ARMS[arm] for part in ("--set", change)]
    command = [sys.executable, "-m", "resode", "train", *recipe, *changes, *more, "--out", str(out)]
    subprocess.run([*command, "--resume"], check=True)


def scores(out: Path) -> dict[str, np.ndarray]:
    """Which test images a run classifies correctly, on each data set; cached in the run directory."""
    kept = out / "correct.npz"
    if not kept.exists():
        module = weights.load(out / "model.safetensors")
        found = {name: _correct(module, name) for name in DATA}
        atomic.write(kept, lambda path: _save(path, found))
    with np.load(kept) as found:
        return {name: found[name] for name in DATA}


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no data set is named like an option of savez


def _correct(module: Any, name: str) -> np.ndarray:
    images = load(name).test
    assert images is not None
    preprocessing = module.preprocessing
    loader = Loader(
        images, np.arange(len(images)), batch_size=500, mean=preprocessing.mean, std=preprocessing.std,
        device=torch.device("cpu"),
    )  # fmt: skip
    with mode(module, training=False), torch.inference_mode():
        found = [module(batch.inputs).argmax(1) == batch.targets for batch in loader]
    return torch.cat(found).numpy()


def effect(plain: list[np.ndarray], other: list[np.ndarray]) -> dict[str, Any]:
    """The difference of the errors in points, with its 95 % interval; the lists have one array a seed."""
    differences = [100 * float(p.mean() - o.mean()) for p, o in zip(plain, other, strict=True)]
    mean, count = statistics.mean(differences), len(differences)
    if count > 1:
        t = float(stats.t.ppf(QUANTILE, count - 1))
        half, over = t * statistics.stdev(differences) / math.sqrt(count), f"{count} seeds"
    else:
        n = len(plain[0])
        lost, won = int((plain[0] & ~other[0]).sum()), int((~plain[0] & other[0]).sum())
        variance = (lost + won - (lost - won) ** 2 / n) / n**2
        half, over = 100 * float(stats.norm.ppf(QUANTILE)) * math.sqrt(variance), f"{n:,} images, one seed"
    return {
        "points": round(mean, 3),
        "low": round(mean - half, 3),
        "high": round(mean + half, 3),
        "over": over,
    }


def gather(folder: Path, arms: list[str], seeds: list[int]) -> dict[str, Any]:
    """The record of the finished runs."""
    done = {arm: [s for s in seeds if (folder / f"{arm}-seed{s}" / "summary.json").exists()] for arm in arms}
    runs, effects = [], []
    for arm in arms:
        for seed in done[arm]:
            runs.append(_run(folder / f"{arm}-seed{seed}", arm, seed))
        paired = [seed for seed in done[arm] if seed in done.get("plain", [])]
        if arm != "plain" and paired:
            for data in DATA:
                sides = ([scores(folder / f"{a}-seed{s}")[data] for s in paired] for a in ("plain", arm))
                effects.append({"arm": arm, "data": data, "seeds": paired, **effect(*sides)})
    return {"runs": runs, "effects": effects}


def _run(out: Path, arm: str, seed: int) -> dict[str, Any]:
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    environment = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    errors = {name: round(100 - 100 * float(right.mean()), 2) for name, right in scores(out).items()}
    return {
        "arm": arm,
        "seed": seed,
        "parameters": summary["parameters"],
        "multiply_adds": cost.multiply_adds(weights.load(out / "model.safetensors"), (3, 32, 32)),
        "epochs": summary["epochs"],
        "top1_error": errors,
        "train_accuracy": summary["train"]["accuracy"],
        "seconds": summary["seconds"],
        "environment": {key: environment[key] for key in ("commit", "torch", "cpu", "threads", "device")},
    }


def table(record: dict[str, Any]) -> str:
    """The runs and the effects as text."""
    lines = [f"{'arm':<10} seed  parameters  multiply-adds  " + "  ".join(f"{d:>14}" for d in DATA)]
    for r in record["runs"]:
        errors = "  ".join(f"{r['top1_error'][d]:>12.2f} %" for d in DATA)
        lines.append(
            f"{r['arm']:<10} {r['seed']:>4}  {r['parameters']:>10,}  {r['multiply_adds'] / 1e6:>11.1f} M  "
            f"{errors}"
        )
    for e in record["effects"]:
        lines.append(
            f"{e['arm']} less plain on {e['data']}: {e['points']:+.2f} points of error "
            f"[{e['low']:+.2f}, {e['high']:+.2f}] ({e['over']})"
        )
    return "\n".join(lines)


def main() -> None:
    """Train the chosen arms, evaluate them, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--seeds", default="0", help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "runs" / "twist",
        help="directory of the runs (default: %(default)s)",
    )
    parser.add_argument("--only-score", action="store_true", help="evaluate finished runs only")
    parser.add_argument("--record", action="store_true", help="write results/twist.json")
    parser.add_argument("more", nargs="*", help="further options of `resode train`, after --")
    asked = parser.parse_args()
    arms, seeds = asked.arms.split(","), [int(seed) for seed in asked.seeds.split(",")]
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        parser.error(f"unknown arm: {', '.join(unknown)} ({', '.join(ARMS)})")
    if not asked.only_score:
        for seed in seeds:
            for arm in arms:
                train(arm, seed, asked.out / f"{arm}-seed{seed}", asked.more)
    record = gather(asked.out, arms, seeds)
    print(table(record))
    if asked.record:
        path = HERE / "results" / "twist.json"
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
