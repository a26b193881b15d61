"""Cluster: every run of a study a job of its own, through submitit (the extra `slurm`).

A command submits what is neither finished nor in the queue, and returns. The same command, later, tells how
the runs stand and why jobs have ended early, and submits those again.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resode.errors import DivergenceError, InputError, ResourceError
from resode.study.execution import claimed, command, last_words, log_of, refuse
from resode.study.job import Ticket, Training
from resode.study.plan import Job, Slurm, Study
from resode.training.records.run import Run

Executor = Literal["slurm", "local"]
FOLDER = "slurm"  # of the study: submitit's files
RESTARTS = 20  # after the time limit, by submitit; the same command goes on from there
STOPPED = (130, 143)  # exit codes of a run that was asked to stop, and has saved
# What `squeue` still shows for a while of jobs that have ended.
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Args:
        job: which run.
        state: finished, to do, begun, ended (the job has, the run has not), submitted, or the queue's word.
        ticket: of its latest job.
        end: why that job ended early.
        code: the exit code that it ended with, where it is known.
    """

    job: Job
    state: str
    ticket: Ticket | None = None
    end: str = ""
    code: int | None = None

    @property
    def due(self) -> bool:
        """Whether to submit it; what diverged would do so again."""
        return self.state in ("to do", "begun", "ended") and self.code != DivergenceError.exit_code

    def __str__(self) -> str:
        where = f" as job {self.ticket.id}" if self.ticket is not None and self.state != "finished" else ""
        return f"{self.job.folder}: {self.state}{where}"


def ticket_of(job: Job, out: Path) -> Path:
    """Where the job of a run is written down."""
    folder = out / job.folder
    return folder.parent / f"{folder.name}.job"


def look(jobs: Sequence[Job], out: Path) -> list[Standing]:
    """How the runs stand.

    Raises:
        ResourceError: the queue cannot be asked.
    """
    tickets = [Ticket.read(ticket_of(job, out)) for job in jobs if not Run(out / job.folder).finished]
    queue = _queue([ticket for ticket in tickets if ticket is not None])
    return [_standing(job, out, queue) for job in jobs]


def _standing(job: Job, out: Path, queue: dict[str, str]) -> Standing:
    """What the files say, which a job that is not in the queue any more has written."""
    run = Run(out / job.folder)
    if run.finished:
        return Standing(job, "finished")
    ticket = Ticket.read(ticket_of(job, out))
    if ticket is None:
        return Standing(job, "begun" if run.exists else "to do")
    if ticket.id in queue:
        return Standing(job, queue[ticket.id].lower(), ticket)
    log = log_of(job, out)
    if ticket.code is None:
        end = f"killed, or never began (see {log} and {out / FOLDER / f'{ticket.id}_0_log.out'})"
    else:
        end = f"{last_words(log, ticket.said) or 'ended'} (exit code {ticket.code}, see {log})"
    return Standing(job, "ended", ticket, f"{job.folder}: job {ticket.id}: {end}", ticket.code)


def submit(
    jobs: Sequence[Job],
    out: Path,
    settings: Slurm,
    *,
    name: str,
    executor: Executor = "slurm",
    parallel: int = 0,
    tell: Callable[[str], None] = lambda text: None,
    plan: Study | None = None,
) -> list[Standing]:
    """Submit the runs that are neither finished nor in the queue; do not wait for them.

    Args:
        jobs: of the study.
        out: its folder, which every host sees.
        settings: what a run asks for.
        name: of the study, for the queue to show.
        executor: `slurm`, or `local`: all at once on this machine, to try it.
        parallel: how many at a time; 0: as many as the cluster lets.
        tell: is told how each run stands.
        plan: what the jobs are of, to be kept beside them.

    Raises:
        InputError: submitit is missing, or the cluster refuses.
        ResourceError: the queue cannot be asked.
        ResodeError: runs have failed, a line each, after all is submitted.
    """
    library = _submitit()
    with claimed(jobs, out, plan):
        standings = look(jobs, out)
        due = [each.job for each in standings if each.due]
        tickets = iter(_submitted(library, due, out, settings, name, executor, parallel) if due else ())
        standings = [
            replace(each, state="submitted", ticket=next(tickets)) if each.due else each for each in standings
        ]
    mistakes = []
    for each in standings:
        if each.end and each.code in (None, *STOPPED):
            tell(each.end)
        elif each.end:
            again = f"; {each}" if each.state == "submitted" else ""
            mistakes.append((each.code or 0, each.end + again))
        tell(str(each))
    refuse(mistakes)
    return standings


def refuse_queued(jobs: Sequence[Job], out: Path) -> None:
    """Refuse to train here what a cluster has in its queue.

    Raises:
        InputError: a line for each such run.
    """
    queued = [each for each in look(jobs, out) if each.ticket is not None and each.state != "ended"]
    if queued:
        raise InputError(*(f"{each}; wait for it, or cancel it" for each in queued))


def _submitted(
    library: Any,
    jobs: Sequence[Job],
    out: Path,
    settings: Slurm,
    name: str,
    executor: Executor,
    parallel: int,
) -> list[Ticket]:
    """The tickets of new jobs, written down beside their runs."""
    logs = [log_of(job, out) for job in jobs]
    here = Path.cwd()
    trainings = [
        Training(tuple(command(job, out)), here, log, ticket_of(job, out), settings.cpus)
        for job, log in zip(jobs, logs, strict=True)
    ]
    try:
        with library.helpers.clean_env():  # of a job that this command may run in
            runner = library.AutoExecutor(
                out / FOLDER, cluster=executor, slurm_max_num_timeout=RESTARTS, local_max_num_timeout=RESTARTS
            )
            runner.update_parameters(
                name=f"resode-{name}", slurm_array_parallelism=parallel or len(jobs), **_asked(settings)
            )
            made = runner.submit_array(trainings)
    except (RuntimeError, OSError) as error:
        raise InputError(f"--executor {executor}: {str(error).strip().splitlines()[-1]}") from error
    tickets = [
        Ticket(executor, job.job_id, log.stat().st_size if log.is_file() else 0)
        for job, log in zip(made, logs, strict=True)
    ]
    for job, ticket in zip(jobs, tickets, strict=True):
        ticket.write(ticket_of(job, out))
    return tickets


def _asked(settings: Slurm) -> dict[str, Any]:
    """What a run asks for, as submitit calls it; None is not asked."""
    return {
        "timeout_min": settings.minutes,
        "gpus_per_node": settings.gpus or None,
        "cpus_per_task": settings.cpus,
        "stderr_to_stdout": True,
        "slurm_partition": settings.partition,
        "slurm_account": settings.account,
        "slurm_qos": settings.qos,
        "slurm_mem": settings.memory,
        "slurm_setup": settings.setup or None,
        # Of SLURM 22.05 and later `srun` does not take it over from `sbatch`.
        "slurm_srun_args": None if settings.cpus is None else [f"--cpus-per-task={settings.cpus}"],
        "slurm_additional_parameters": {"requeue": True, **settings.sbatch},
    }


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except (ImportError, RuntimeError):
        raise InputError("jobs of a cluster need submitit: pip install 'resode[slurm]'") from None


def _queue(tickets: Sequence[Ticket]) -> dict[str, str]:
    """The jobs that wait or run, and what the queue calls that."""
    slurm = sorted({ticket.id.partition("_")[0] for ticket in tickets if ticket.executor == "slurm"})
    local = {ticket.id: "RUNNING" for ticket in tickets if ticket.executor == "local" and _lives(ticket.id)}
    return {**(_squeue(slurm) if slurm else {}), **local}


def _squeue(ids: Sequence[str]) -> dict[str, str]:
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={','.join(ids)}"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ResourceError(
            f"squeue: {error}: what is in the queue is not known, so nothing is started; run this on the "
            "cluster, or delete the files seedN.job"
        ) from None
    if answer.returncode and "Invalid job id" not in answer.stderr:  # of jobs that SLURM has forgotten
        said = (answer.stderr.strip().splitlines() or [f"ended with code {answer.returncode}"])[-1]
        raise ResourceError(f"{said}: what is in the queue is not known, so nothing is started; try again")
    found = (line.partition(" ") for line in answer.stdout.splitlines() if line.strip())
    return {job: state.strip() or "UNKNOWN" for job, _, state in found if state.strip() not in OVER}


def _lives(process: str) -> bool:
    """Whether this is (still) a process of submitit's local executor."""
    try:
        os.kill(int(process), 0)
        return sys.platform != "linux" or b"submitit" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
