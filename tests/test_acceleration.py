"""Slots import what is registered at first use; without the folder `kernels` only speed is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import resode
from resode.acceleration import Slot

SOURCES = Path(resode.__file__).parent

WITHOUT_KERNELS = """
import sys

import torch

import resode
from resode import acceleration
from resode.cli import main
from resode.inference import Frozen, evaluate
from resode.operators.twist import TwistConv2d

run = sys.argv[1]
keys = {"epochs": 2, "batch_size": 256, "model.widths": [4, 4, 8], "precision": "fp32", "compile": False}
experiment = resode.Experiment.from_recipe("quickstart", {**keys, "twist": [{"at": 0.5}]})
result = resode.train(experiment, out=run)
assert any(isinstance(module, TwistConv2d) for module in result.module.modules())
scores = evaluate(run).scores
assert scores.samples == 360
try:
    main(["list", "models"])
except SystemExit as exit_:
    assert not exit_.code
torch.manual_seed(0)
network, x = result.module.eval(), torch.randn(2, 1, 8, 8)
with torch.inference_mode():
    torch.testing.assert_close(Frozen(network)(x), network(x), rtol=1e-4, atol=1e-5)
assert acceleration.backend.get() == "inductor"
assert acceleration.version.get()() == ""
assert not [name for name in sys.modules if name.startswith("resode.kernels")]
"""


def test_a_slot_imports_what_is_registered_at_first_use():
    slot = Slot("default")
    assert slot.get() == "default"
    slot.register("pathlib:Path")
    assert slot.value == "default"
    assert slot.get() is slot.value is Path


def test_import_registers_kernels_without_torch():
    script = (
        "import sys, resode; from resode import acceleration as a; assert 'torch' not in sys.modules;"
        "assert [s.path != '' for s in (a.twist, a.backend, a.program, a.version)] == [True] * 4"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_without_the_folder_kernels_everything_works(tmp_path):
    shutil.copytree(SOURCES, tmp_path / "resode", ignore=shutil.ignore_patterns("kernels", "__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "RESODE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_KERNELS, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "he_resnet" in done.stdout
