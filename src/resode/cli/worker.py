"""Worker: `python -m resode.cli.worker` runs commands one after another in one process, for a study.

PyTorch is imported once, not for each run. A line of JSON on stdin is a task, {"arguments": [...], "log":
FILE}; its output is appended to the log, and a line on stdout says that it is done. A command that fails ends
the worker with its exit code, so that no run begins in a process that an error has left behind.
"""

import gc
import json
import os
import sys
from collections.abc import Sequence

from resode.cli import main
from resode.study.job import end_with_parent


def work() -> None:
    """Run the tasks that come in until stdin is closed."""
    end_with_parent()
    replies = os.dup(sys.stdout.fileno())
    for line in iter(sys.stdin.readline, ""):
        task = json.loads(line)
        _log_to(task["log"])
        code = _run(task["arguments"])
        _flush()
        if code:
            sys.exit(code)
        _forget()
        os.write(replies, b"done\n")


def _run(arguments: Sequence[str]) -> int:
    """Run a command of resode and return its exit code."""
    try:
        main(list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _log_to(file: str) -> None:
    """Append stdout and stderr to a file from now on."""
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    os.close(log)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _forget() -> None:
    """Free what a run leaves in the process: its memory, and its compiled code, which would count as ours."""
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        work()
    except KeyboardInterrupt:  # before a run began
        sys.exit(130)
