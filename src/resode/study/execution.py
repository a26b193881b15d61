"""Execution: the runs of a study, each a `resode train --resume` of its own, several at a time where it pays.

A run that is finished is not repeated, one that was stopped goes on, one that fails leaves the others alone.
What a run says is in `seedN.log` beside its folder.
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
from resode.study.job import end_with_parent
from resode.study.plan import Job, Study, read
from resode.training.launch import agreed
from resode.training.process.signals import StopRequest, listening
from resode.training.records.run import Run


class Refused(InputError):
    """A study that cannot go on: its folder holds results of other settings."""


ARMS, PLAN = "arms.json", "study.yaml"  # in the folder of a study: the arm of each run, and its file
BY_CODE: Mapping[int, type[ResodeError]] = {2: InputError, 3: IntegrityError, 4: DivergenceError}


class Progress:
    """What a study tells while it goes on; this one keeps silent."""

    def started(self, job: Job, left: int) -> None:
        """A run begins, or goes on; so many are not finished."""

    def finished(self, job: Job, summary: Mapping[str, Any]) -> None:
        """A run came to its end."""

    def failed(self, job: Job, message: str) -> None:
        """A run ended otherwise."""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes] = field(repr=False)
    said: int  # bytes of the log before


def execute(
    jobs: Sequence[Job],
    out: Path,
    *,
    parallel: int = 1,
    progress: Progress | None = None,
    plan: Study | None = None,
) -> None:
    """Run what is not finished.

    Args:
        jobs: of the study.
        out: the folder of the study.
        parallel: how many runs at a time; they share the cores.
        progress: is told what happens.
        plan: what the jobs are of, to be kept beside them.

    Raises:
        Stopped: a signal came; every run has saved.
        ResodeError: runs have failed, a line each, after all others have come to their end.
    """
    progress = progress or Progress()
    with claimed(jobs, out, plan), listening() as stop:
        waiting = [job for job in jobs if not Run(out / job.folder).finished]
        running: list[_Running] = []
        mistakes: list[tuple[int, str]] = []
        try:
            while (waiting or running) and stop.number is None:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    progress.started(job, 1 + len(waiting) + len(running))
                    running.append(_start(job, out, parallel))
                for each in [r for r in running if r.process.poll() is not None]:
                    running.remove(each)
                    mistakes += _ended(each, out, progress)
                time.sleep(0.05)
        finally:
            mistakes += _stop(running, stop, out)
    if stop.number is not None:
        failed = [message for _, message in mistakes]
        raise Stopped(stop.number, *failed, f"stopped and saved; go on with the same command ({out})")
    refuse(mistakes)


@contextlib.contextmanager
def claimed(jobs: Sequence[Job], out: Path, plan: Study | None = None) -> Iterator[None]:
    """Hold the folder of a study, whose results are of these very settings, within the block."""
    with contextlib.closing(Run(out).lock()):
        _check_finished(jobs, out)
        arms = {str(job.folder): job.arm for job in jobs}
        atomic.write_json(out / ARMS, arms)  # by which `resode compare` knows them
        if plan is not None and not _kept(plan, out / PLAN):
            atomic.write_text(out / PLAN, plan.to_yaml())
        yield


def _kept(plan: Study, file: Path) -> bool:
    """Whether a file says the same already (it may be the user's own, with comments)."""
    try:
        return read(file) == plan
    except InputError:
        return False


def refuse(mistakes: Sequence[tuple[int, str]]) -> None:
    """End with what went wrong, by exit code, if anything did."""
    if mistakes:
        code = max(code for code, _ in mistakes)
        raise BY_CODE.get(code, ResourceError)(*(message for _, message in mistakes))


def _check_finished(jobs: Sequence[Job], out: Path) -> None:
    """Refuse results of other settings: those of a study file that has been changed since."""
    mistakes: list[str] = []
    for job in jobs:
        run = Run(out / job.folder)
        if run.exists:
            try:
                agreed(job.experiment(), run)
            except InputError as error:
                mistakes += error.messages
    if mistakes:
        raise Refused(*mistakes)


def unfinished(jobs: Sequence[Job], out: Path) -> int:
    """How many runs are left to do."""
    return sum(not Run(out / job.folder).finished for job in jobs)


def command(job: Job, out: Path) -> list[str]:
    """What trains a run, or goes on with it."""
    words = [sys.executable, "-m", "resode", "train", *job.words]
    return [*words, "--out", str(out / job.folder), "--resume"]


def _start(job: Job, out: Path, parallel: int) -> _Running:
    folder = out / job.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = log_of(job, out).open("ab")
    threads = {"OMP_NUM_THREADS": str(_threads(parallel))} if parallel > 1 else {}
    process = subprocess.Popen(
        command(job, out),
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **threads},
        start_new_session=True,  # Ctrl-C reaches a run once, through us
        preexec_fn=end_with_parent,
    )
    return _Running(job, process, log, log.tell())


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_parallel(left: int) -> int:
    """How many of `left` runs to train at a time: one on a GPU, else one per core.

    On a CPU, many runs of one thread each train more images a second than one run on all cores.
    """
    return 1 if torch.cuda.is_available() else max(1, min(left, cores()))


def _threads(parallel: int) -> int:
    """Of each of so many runs: its share of the cores, or fewer where the user says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores() // parallel)
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share


def log_of(job: Job, out: Path) -> Path:
    """What a run says goes here."""
    folder = out / job.folder
    return folder.parent / f"{folder.name}.log"


def last_words(log: Path, said: int) -> str | None:
    """The last line by which a run told why it ended, after so many bytes of its log."""
    lines = log.read_bytes()[said:].decode(errors="replace").splitlines() if log.is_file() else []
    return next((line.removeprefix("resode: ") for line in lines[::-1] if line.startswith("resode: ")), None)


def _ended(running: _Running, out: Path, progress: Progress) -> list[tuple[int, str]]:
    """Tell how a run ended; its mistakes."""
    running.log.close()
    job, code = running.job, running.process.returncode
    if code == 0:
        progress.finished(job, Run(out / job.folder).read_summary())
        return []
    log = log_of(job, out)
    message = f"{job.folder}: {last_words(log, running.said) or f'ended with code {code}'} (see {log})"
    progress.failed(job, message)
    return [(code if code in BY_CODE else 5, message)]


def _stop(running: Sequence[_Running], stop: StopRequest, out: Path) -> list[tuple[int, str]]:
    """Let every run save and end; a second signal ends them at once. Mistakes of those that could not."""
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
    return [mistake for each in failed for mistake in _ended(each, out, Progress())]
