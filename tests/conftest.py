"""Shared by all tests: a small experiment, random numbers and a cache of their own, where real data lies."""

import ctypes
import getpass
import os
import sys
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: they share the cores, a thread each
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("COLUMNS", None)  # which only a terminal has
# What torch compiles is shared by all processes and later runs of the tests with the same instructions.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    "-".join(
        (tempfile.gettempdir() + "/resode-tests", getpass.getuser(), os.getenv("ATEN_CPU_CAPABILITY", ""))
    ),
)

import pytest
import torch
import torch._dynamo  # here, as it warns of torch's own deprecated calls, and a warning in a test is an error
from hypothesis import HealthCheck, settings

from resode.data import sources
from resode.fields import activations, fields, norms
from resode.gradients import gradients
from resode.integrators import integrators
from resode.models import models
from resode.models.transitions import connectors
from resode.training import Experiment

DIGITS_IN_A_FLASH = {"epochs": 2, "batch_size": 256, "model.widths": [4, 4, 8], "precision": "fp32"}


# The same examples on every machine, however slow it is
settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def own_random_numbers():
    """No test's random numbers depend on the tests before it, which differ from worker to worker."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_registrations():
    """What a test registers is gone after it."""
    registries = (activations, connectors, fields, gradients, integrators, models, norms, sources)
    before = [(each, dict(each._entries)) for each in registries]
    yield
    for registry, entries in before:
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.fixture(autouse=True)
def returned_memory():
    """A worker gives back what a large test leaves free, which glibc keeps between blocks that are in use."""
    before = _resident()
    yield
    if _resident() > before + 64e6:
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    """Bytes of this process in memory (0 where the system does not say)."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def tiny() -> Experiment:
    """A few steps of a narrow ResNet-8 on digits: under a second."""
    return Experiment.from_recipe("quickstart", DIGITS_IN_A_FLASH)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data (RESODE_DATA); the test is skipped where there is none."""
    root = os.environ.get("RESODE_DATA")
    if not root or not (Path(root) / "cifar10").is_dir():
        pytest.skip("needs real CIFAR-10: set RESODE_DATA to a folder that holds cifar10/*.parquet")
    return Path(root)
