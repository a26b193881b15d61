"""Runs of a study on this machine: `resode train --resume` for each, in workers that are started once.

Finished runs are not repeated, stopped runs are resumed, and a failed run does not affect the others: it ends
its worker, and the next run gets a new one. The output of a run is in `seedN.log` beside its folder.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
class _Worker:
    """A process that trains runs one after another (`resode.cli.worker`).

    Args:
        process: of the worker.
        job: the run that it trains now, if any.
        start: size of that run's log before, in bytes.
    """

    process: subprocess.Popen[bytes]
    job: Job | None = None
    start: int = 0

    def begin(self, job: Job, out: Path) -> None:
        """Hand over a run."""
        log = log_file(job, out)
        log.parent.mkdir(parents=True, exist_ok=True)
        self.job, self.start = job, log.stat().st_size if log.is_file() else 0
        task = {"arguments": arguments(job, out), "log": str(log)}
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a worker that has died: `ended` reports it
            self.process.stdin.write(json.dumps(task).encode() + b"\n")

    def ended(self) -> int | None:
        """The exit code of the run; None while it goes on."""
        assert self.process.stdout is not None
        code = self.process.poll()
        if select.select([self.process.stdout], [], [], 0)[0] and self.process.stdout.read(8):
            return 0
        return None if code is None else code or 1

    def close(self) -> None:
        """Let an idle worker end."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


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
        workers: list[_Worker] = []
        failures: list[tuple[int, str]] = []
        try:
            while (waiting or any(each.job for each in workers)) and stop.number is None:
                while waiting and (worker := _free(workers, waiting[0], out, parallel)) is not None:
                    job = waiting.pop(0)
                    progress.started(job, 1 + len(waiting) + sum(each.job is not None for each in workers))
                    worker.begin(job, out)
                for each in [w for w in workers if w.job is not None]:
                    if (code := each.ended()) is not None:
                        failures += _finish(each, code, out, progress)
                        if code:
                            workers.remove(each)
                            each.close()
                time.sleep(0.05)
        finally:
            failures += _stop(workers, stop, out)
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


def arguments(job: Job, out: Path) -> list[str]:
    """The arguments of `resode` that train or resume a run."""
    return ["train", *job.arguments, "--out", str(out / job.folder), "--resume"]


def command(job: Job, out: Path) -> list[str]:
    """The command that trains or resumes a run."""
    return [sys.executable, "-m", "resode", *arguments(job, out)]


def _free(workers: list[_Worker], job: Job, out: Path, parallel: int) -> _Worker | None:
    """An idle worker, or a new one if fewer than `parallel` exist; None if all are busy."""
    for each in [w for w in workers if w.job is None and w.process.poll() is not None]:
        workers.remove(each)  # it died between two runs
        each.close()
    idle = next((each for each in workers if each.job is None), None)
    if idle is None and len(workers) < parallel:
        idle = _start(job, out, parallel)
        workers.append(idle)
    return idle


def _start(job: Job, out: Path, parallel: int) -> _Worker:
    """Start a worker; should it fail before its first run, the log of that run says why."""
    log = log_file(job, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(_threads(parallel))} if parallel > 1 else {}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "resode.cli.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env={**os.environ, **threads},
            start_new_session=True,  # Ctrl-C reaches a run only through this process
        )
    return _Worker(process)


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


def _finish(worker: _Worker, code: int, out: Path, progress: Progress) -> list[tuple[int, str]]:
    """Report how a run ended; returns its failure, if any, as (exit code, message)."""
    job = worker.job
    assert job is not None
    worker.job = None
    if code == 0:
        progress.finished(job, Run(out / job.folder).read_summary())
        return []
    log = log_file(job, out)
    message = f"{job.folder}: {last_error(log, worker.start) or f'ended with code {code}'} (see {log})"
    progress.failed(job, message)
    return [(code if code in BY_CODE else 5, message)]


def _stop(workers: Sequence[_Worker], stop: StopRequest, out: Path) -> list[tuple[int, str]]:
    """Let every run save and end (a second signal kills them); returns the failures of those that did not."""
    busy = [each for each in workers if each.job is not None]
    try:
        for each in busy:
            each.process.send_signal(signal.SIGTERM if stop.number is None else stop.number)
        for each in workers:
            each.close()
    except BaseException:
        for each in workers:
            each.process.kill()
        raise
    signals = (signal.SIGINT, signal.SIGTERM)
    stopped = {0, *(128 + number for number in signals), *(-number for number in signals)}
    codes = [(each, each.process.returncode) for each in busy]
    return [
        failure
        for each, code in codes
        if code not in stopped
        for failure in _finish(each, code, out, Progress())
    ]
