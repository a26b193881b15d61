"""A run of a study as a cluster job. Imports no PyTorch: the training is a process of its own."""

import contextlib
import ctypes
import dataclasses
import importlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resode import atomic


def exit_code_file(folder: Path, job: str) -> Path:
    """File with the exit code of an ended job, beside submitit's files of that job."""
    return folder / f"{job}_exit_code"


@dataclass
class Training:
    """Trains one run; the callable that submitit submits.

    On SIGTERM the run saves and stops. On the signal before the time limit it does so, too, and submitit
    requeues the job. The output goes to submitit's log of the job.

    Args:
        arguments: the command.
        directory: working directory of the command.
        threads: number of threads (default: PyTorch's choice).
    """

    arguments: tuple[str, ...]
    directory: Path
    threads: int | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    stopping: bool = field(default=False, init=False, repr=False)

    def __call__(self) -> None:
        """Train or resume; exit with the code of the training, so that `sacct` shows it."""
        environment = importlib.import_module("submitit").JobEnvironment()
        result = exit_code_file(Path(environment.paths.folder).absolute(), environment.job_id)
        result.unlink(missing_ok=True)  # of an earlier attempt of a requeued job
        signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={**os.environ, **threads},
            start_new_session=True,
            preexec_fn=_prepare_child,
        )
        if self.stopping:
            self.process.terminate()
        code = self.process.wait()
        code = code if code >= 0 else 128 - code
        atomic.write_text(result, f"{code}\n")
        if code:
            sys.exit(code)

    def stop(self) -> None:
        """Ask the run to save and stop; only once, as a second signal would end it at once."""
        if not self.stopping and self.process is not None:
            self.process.terminate()
        self.stopping = True

    def checkpoint(self) -> Any:
        """What submitit requeues once the run has saved. Called from a signal handler, within `wait`."""
        self.stop()
        if self.process is not None:
            with contextlib.suppress(ChildProcessError):  # `wait` holds the lock of `process`
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return importlib.import_module("submitit.helpers").DelayedSubmission(dataclasses.replace(self))


def end_with_parent() -> None:
    """In a child: receive SIGTERM when the parent is killed (Linux only; elsewhere the child goes on)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _prepare_child() -> None:
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # clusters may send them to every process of a job
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
