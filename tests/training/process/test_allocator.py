"""A process that trains keeps the memory that a step frees."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from resode.training.process.allocator import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

keep = {keep} and keep_freed_memory()
activations = [torch.ones(2**20) for _ in range(64)]  # 256 MiB
held = resident()
del activations
print(int(keep), held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
@pytest.mark.parametrize("keep", [False, True])
def test_what_is_freed_stays_with_the_process(keep):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(keep=keep)], check=True, capture_output=True, text=True
    )
    kept, given_back = map(int, done.stdout.split())
    if keep and not kept:
        pytest.skip("another C library")
    assert (given_back < 2**26) is keep
