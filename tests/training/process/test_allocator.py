"""A process that trains keeps the memory that a step frees, and returns it once the training has ended."""

import subprocess
import sys

import pytest

SCRIPT = """
import contextlib
import torch
from resode.training.process.allocator import keeping_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

with {context} as keep:
    activations = [torch.ones(2**20) for _ in range(64)]  # 256 MiB
    held = resident()
    small = torch.ones(2**10)  # at the end of the heap
    del activations
    freed = held - resident()
print(int(keep), freed, held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
@pytest.mark.parametrize("context", ["contextlib.nullcontext(False)", "keeping_freed_memory()"])
def test_freed_memory_stays_with_the_process_while_it_trains(context):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(context=context)], check=True, capture_output=True, text=True
    )
    keep, returned_within, returned_after = map(int, done.stdout.split())
    if "keeping" in context and not keep:
        pytest.skip("another C library")
    assert (returned_within < 2**26) is bool(keep)
    assert returned_after > 3 * 2**26
