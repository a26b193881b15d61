"""A killed run resumes and ends in the same bits; a flipped bit of its files is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[3] / "benchmarks" / "faults.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forked")
def test_a_sample_of_kills_loses_no_run_and_no_flip_is_silent(tmp_path):
    done = subprocess.run(
        [sys.executable, str(FAULTS), "--kills", "3", "--every", "9", "--flips", "40", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout)
    assert (record["lost"], record["silent"], record["flips"]) == (0, 0, 40)
    assert record["kills"] >= 12
