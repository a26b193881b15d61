"""Lift trained ResNets; their test errors, finer and with fewer controls, go to lift.json beside this file.

git --git-dir=ORIGINAL show HEAD:pretrained_models/resnet56-4bfd9763.th > resnet56.th
resode import akamaster resnet56.th --model he_resnet56 --out akamaster56.safetensors
python results/lift.py --images 2000 --controls 3,6 akamaster20.safetensors akamaster56.safetensors
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import resode
from resode import cost
from resode.training.records.environment import environment

BASES = ("constant", "linear", "quadratic", "cubic")
STATISTICS = 1024  # training images on which statistics are estimated anew


def error(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The test error in percent."""
    wrong = 0
    with torch.no_grad():
        for x, y in zip(images.split(250), labels.split(250), strict=True):
            wrong += int((net.eval()(x).argmax(1) != y).sum())
    return round(100 * wrong / len(labels), 4)


def row(name: str, statistics: str, net: Any, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Test error, controls, parameters and multiply-adds of one network."""
    blocks = list(net.blocks()) if isinstance(net, resode.DynamicNet) else []
    found = {
        "network": name,
        "statistics": statistics,
        "steps": [block.stage.states.steps for block in blocks],
        "controls": [len(block.controls) for block in blocks],
        "parameters": cost.parameters(net),
        "multiply_adds": cost.multiply_adds(net, (3, 32, 32)),
        "test_error": error(net, images, labels),
    }
    print(f"{name}, statistics {statistics}: {found['test_error']:.2f} %", flush=True)
    return found


def rows(path: str, images: int, controls: list[int]) -> list[dict[str, Any]]:
    """The network, lifted, with finer steps, and with fewer controls in each basis."""
    net, data = resode.load(path), resode.load_data("cifar10")
    assert data.test is not None
    test, train = (
        net.preprocessing(torch.from_numpy(part.pixels[:count].copy()).permute(0, 3, 1, 2))
        for part, count in ((data.test, images), (data.train, STATISTICS))
    )
    labels = torch.from_numpy(data.test.labels[:images].copy()).long()
    name, made = Path(path).stem, []

    def add(what: str, statistics: str, network: Any) -> None:
        made.append(row(f"{name}, {what}", statistics, network, test, labels))

    lifted = finer = resode.lift(net)
    add("as trained", "kept", net)
    add("lifted", "kept", lifted)
    add("lifted", "anew", resode.regrid(lifted, images=train))
    for factor in (2, 4):
        finer = resode.regrid(finer, states="double")
        add(f"{factor} n steps", "kept", finer)
        add(f"{factor} n steps", "anew", resode.regrid(finer, images=train))
    for count in controls:
        for basis in BASES:
            fewer = resode.lift(net, controls=count, interpolation=basis, images=train)
            add(f"{count} controls, {basis}", "anew", fewer)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--images", type=int, default=10_000, help="the first N test images")
    parser.add_argument("--controls", default="3,6", help="numbers of controls for each block")
    given = parser.parse_args()
    numbers = [int(n) for n in given.controls.split(",")]
    found = [line for path in given.weights for line in rows(path, given.images, numbers)]
    record = {
        "environment": environment(torch.device("cpu")),
        "images": given.images,
        "statistics": STATISTICS,
        "rows": found,
    }
    Path(__file__).with_name("lift.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
