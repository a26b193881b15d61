"""Runs of a study on this machine: each a `resode train --resume` of its own, several in parallel.

Finished runs are not repeated, stopped runs are resumed, and a failed run does not affect the others. The
output of a run is in `seedN.log` beside its folder.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from resode import atomic
from resode.errors import (
    DivergenceError,
    InputError,
    IntegrityError,
    ResodeError,
    ResourceError,
    Stopped,
)
from resode.study.definition import Job, Study, read
from resode.study.job import end_with_parent
from resode.training.launch import agreed
from resode.training.process.signals import StopRequest, listening
from resode.training.records.run import Run


class SettingsChanged(InputError):
    """The folder of a study holds results of other settings."""


ARMS, STUDY = "arms.json", "study.yaml"  # in the folder of a study: the arm of each run, and the study file
BY_CODE: Mapping[int, type[ResodeError]] = {2: InputError, 3: IntegrityError, 4: DivergenceError}


class Progress:
    """Callbacks of `execute`; these do nothing."""

    def started(self, job: Job, left: int) -> None:
        """Called when a run begins or resumes, with the number of unfinished runs."""

    def finished(self, job: Job, summary: Mapping[str, Any]) -> None:
        """Called when a run has finished."""

    def failed(self, job: Job, message: str) -> None:
        """Called when a run has failed."""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes] = field(repr=False)
    start: int  # size of the log before this process, in bytes


def execute(
    jobs: Sequence[Job],
    out: Path,
    *,
    parallel: int = 1,
    progress: Progress | None = None,
    study: Study | None = None,
) -> None:
    """Train all runs that are not finished.

    Args:
        jobs: runs of the study.
        out: folder of the study.
        parallel: number of runs at a time; they share the cores.
        progress: callbacks.
        study: the study, whose file is stored in `out`.

    Raises:
        Stopped: a signal arrived; every run has saved.
        ResodeError: runs have failed, a line each; raised after all other runs have ended.
    """
    progress = progress or Progress()
    with locked(jobs, out, study), listening() as stop:
        waiting = [job for job in jobs if not Run(out / job.folder).finished]
        running: list[_Running] = []
        failures: list[tuple[int, str]] = []
        try:
            while (waiting or running) and stop.number is None:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    progress.started(job, 1 + len(waiting) + len(running))
                    running.append(_start(job, out, parallel))
                for each in [r for r in running if r.process.poll() is not None]:
                    running.remove(each)
                    failures += _finish(each, out, progress)
                time.sleep(0.05)
        finally:
            failures += _stop(running, stop, out)
    if stop.number is not None:
        failed = [message for _, message in failures]
        raise Stopped(stop.number, *failed, f"stopped and saved; resume with the same command ({out})")
    raise_failures(failures)


@contextlib.contextmanager
def locked(jobs: Sequence[Job], out: Path, study: Study | None = None) -> Iterator[None]:
    """Context that locks the folder of a study, checks its runs' settings, and stores arms and study file.

    Raises:
        InputError: another process has the lock.
        SettingsChanged: a run in the folder has other settings.
    """
    with Run(out).lock():
        _check_finished(jobs, out)
        arms = {str(job.folder): job.arm for job in jobs}
        atomic.write_json(out / ARMS, arms)  # read by `resode compare`
        if study is not None and not _is_stored(study, out / STUDY):
            atomic.write_text(out / STUDY, study.to_yaml())
        yield


def _is_stored(study: Study, file: Path) -> bool:
    """Whether the file already defines this study (it may be the user's own, with comments)."""
    try:
        return read(file) == study
    except InputError:
        return False


def raise_failures(failures: Sequence[tuple[int, str]]) -> None:
    """Raise the error of the largest exit code with all messages; do nothing without failures."""
    if failures:
        code = max(code for code, _ in failures)
        raise BY_CODE.get(code, ResourceError)(*(message for _, message in failures))


def _check_finished(jobs: Sequence[Job], out: Path) -> None:
    """Raise `SettingsChanged` if the study file was changed after a run had started."""
    mistakes: list[str] = []
    for job in jobs:
        run = Run(out / job.folder)
        if run.exists:
            try:
                agreed(job.experiment(), run)
            except InputError as error:
                mistakes += error.messages
    if mistakes:
        raise SettingsChanged(*mistakes)


def unfinished(jobs: Sequence[Job], out: Path) -> int:
    """Number of runs that are not finished."""
    return sum(not Run(out / job.folder).finished for job in jobs)


def command(job: Job, out: Path) -> list[str]:
    """The command that trains or resumes a run."""
    train = [sys.executable, "-m", "resode", "train", *job.arguments]
    return [*train, "--out", str(out / job.folder), "--resume"]


def _start(job: Job, out: Path, parallel: int) -> _Running:
    folder = out / job.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = log_file(job, out).open("ab")
    threads = {"OMP_NUM_THREADS": str(_threads(parallel))} if parallel > 1 else {}
    process = subprocess.Popen(
        command(job, out),
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **threads},
        start_new_session=True,  # Ctrl-C reaches a run only through this process
        preexec_fn=end_with_parent,
    )
    return _Running(job, process, log, log.tell())


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_parallel(left: int) -> int:
    """How many of `left` runs to train at a time: one on a GPU, else one per core.

    On a CPU, many runs of one thread each train more images a second than one run on all cores.
    """
    return 1 if torch.cuda.is_available() else max(1, min(left, cores()))


def _threads(parallel: int) -> int:
    """Threads of each of `parallel` runs: its share of the cores, at most OMP_NUM_THREADS."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores() // parallel)
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


def log_file(job: Job, out: Path) -> Path:
    """The file with the output of a run."""
    folder = out / job.folder
    return folder.parent / f"{folder.name}.log"


def last_error(log: Path, start: int = 0) -> str | None:
    """The last error message in a log after its first `start` bytes."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines() if log.is_file() else []
    return next((line.removeprefix("resode: ") for line in lines[::-1] if line.startswith("resode: ")), None)


def _finish(running: _Running, out: Path, progress: Progress) -> list[tuple[int, str]]:
    """Report how a run ended; returns its failure, if any, as (exit code, message)."""
    running.log.close()
    job, code = running.job, running.process.returncode
    if code == 0:
        progress.finished(job, Run(out / job.folder).read_summary())
        return []
    log = log_file(job, out)
    message = f"{job.folder}: {last_error(log, running.start) or f'ended with code {code}'} (see {log})"
    progress.failed(job, message)
    return [(code if code in BY_CODE else 5, message)]


def _stop(running: Sequence[_Running], stop: StopRequest, out: Path) -> list[tuple[int, str]]:
    """Let every run save and end (a second signal kills them); returns the failures of those that did not."""
    try:
        for each in running:
            each.process.send_signal(signal.SIGTERM if stop.number is None else stop.number)
        for each in running:
            each.process.wait()
    except BaseException:
        for each in running:
            each.process.kill()
        raise
    stopped = {0, *(128 + number for number in (signal.SIGINT, signal.SIGTERM))}
    failed = [each for each in running if each.process.returncode not in stopped]
    for each in running:
        each.log.close()
    return [failure for each in failed for failure in _finish(each, out, Progress())]
