"""Job: what a cluster runs for one run of a study. It loads no PyTorch: the training is a process of its own.

`seedN.job` beside a run is the ticket that names its job. A job that the ticket does not name does nothing,
so that no run is trained twice, whoever submits, whatever is lost in between.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resode import atomic
from resode.errors import IntegrityError

PATIENCE = 120.0  # seconds until a ticket is there for every host to see


@dataclass(frozen=True)
class Ticket:
    """The job of a run.

    Args:
        executor: slurm or local.
        id: of the job; `1234_0` in an array.
        said: bytes of the run's log before it.
        code: the exit code of the training, once that has ended.
    """

    executor: str
    id: str
    said: int
    code: int | None = None

    def write(self, path: Path) -> None:
        """Put it in the place of the one before."""
        atomic.write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Ticket | None":
        """The ticket there, if there is one."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise IntegrityError(
                f"{path}: is damaged; delete it when no job of this run is in the queue"
            ) from None


@dataclass
class Training:
    """Trains one run, as submitit calls it.

    SIGTERM lets the run save and stop. So does the signal before the time limit, and submitit has the job
    queued again.

    Args:
        words: the command.
        directory: where it is run; paths are relative to it.
        log: takes what the run says.
        ticket: of the run.
        threads: of the training; left out, PyTorch decides.
    """

    words: tuple[str, ...]
    directory: Path
    log: Path
    ticket: Path
    threads: int | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    asked: bool = field(default=False, init=False, repr=False)

    def __call__(self) -> None:
        """Train, or go on; end with the code of the training, for `sacct` to show."""
        os.chdir(self.directory)
        ticket = dataclasses.replace(self._own_ticket(), code=None)
        ticket.write(self.ticket)
        signal.signal(signal.SIGTERM, lambda number, frame: self.ask())
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
                start_new_session=True,
                preexec_fn=_begin,
            )
            if self.asked:
                self.process.terminate()
            code = self.process.wait()
        code = code if code >= 0 else 128 - code
        dataclasses.replace(ticket, code=code).write(self.ticket)
        if code:
            sys.exit(code)

    def ask(self) -> None:
        """Let the run save and stop; once, for a later signal would end it at once."""
        if not self.asked and self.process is not None:
            self.process.terminate()
        self.asked = True

    def checkpoint(self) -> Any:
        """What submitit queues again, when the run has saved. Called from a signal handler, within `wait`."""
        self.ask()
        if self.process is not None:
            with contextlib.suppress(ChildProcessError):  # `wait` holds the lock of `process`
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return importlib.import_module("submitit.helpers").DelayedSubmission(dataclasses.replace(self))

    def _own_ticket(self) -> Ticket:
        job = importlib.import_module("submitit").JobEnvironment().job_id
        end = time.monotonic() + PATIENCE
        while (ticket := Ticket.read(self.ticket)) is None or ticket.id != job:
            if time.monotonic() > end:
                sys.exit(f"{self.ticket} does not name job {job}: nothing is done")
            time.sleep(0.2)
        return ticket


def end_with_parent() -> None:
    """In a run: save and end when what has started it is killed (Linux; elsewhere it goes on by itself)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _begin() -> None:
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # the cluster may send them to every process of a job
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
