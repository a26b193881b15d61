"""Runs of a study as cluster jobs, through submitit (the extra `slurm`).

The command submits every run that is neither finished nor in the queue, and returns. Repeated later, it
reports the state of each run and why jobs ended early, and submits those again.

    OUT/jobs.json            job -> run, e.g. "slurm/1234_0": "wide/seed0"; the last job of a run counts
    OUT/slurm/1234_0_*       submitit's files of a job, its log, and its exit code
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resode import atomic
from resode.errors import DivergenceError, InputError, IntegrityError, ResourceError
from resode.study.definition import Job, Slurm, Study
from resode.study.execution import command, last_error, locked, raise_failures
from resode.study.job import Training, exit_code_file
from resode.training.records.run import Run

Executor = Literal["slurm", "local"]
EXECUTORS: tuple[Executor, ...] = ("slurm", "local")
JOBS = "jobs.json"
MAX_REQUEUES = 20  # after the time limit, by submitit
STOPPED = (130, 143)  # exit codes of a run that saved after a signal
# States in which `squeue` still lists ended jobs for a while.
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Status:
    """State of a run.

    Args:
        job: the run.
        state: finished, to do, begun, ended (its job has ended early), submitted, or squeue's state.
        id: id of its latest job, if it was submitted.
        reason: why that job ended early.
        code: exit code of that job, if it wrote one.
    """

    job: Job
    state: str
    id: str = ""
    reason: str = ""
    code: int | None = None

    @property
    def due(self) -> bool:
        """Whether to submit the run; one that diverged would diverge again."""
        return self.state in ("to do", "begun", "ended") and self.code != DivergenceError.exit_code

    def __str__(self) -> str:
        return f"{self.job.folder}: {self.state}" + (f" as job {self.id}" if self.id else "")


def statuses(jobs: Sequence[Job], out: Path) -> list[Status]:
    """State of every run.

    Raises:
        ResourceError: the queue cannot be queried, or holds a job that jobs.json does not list (the command
            that submitted it was killed).
    """
    listed = _read_jobs(out)
    latest = {run: job for job, run in listed.items()}
    unfinished = {str(job.folder) for job in jobs if not Run(out / job.folder).finished}
    unlisted = _submitted(out) - listed.keys()
    queue = _queue({job for run, job in latest.items() if run in unfinished} | unlisted)
    if unknown := sorted(unlisted & queue.keys()):
        raise ResourceError(
            *(f"{out}: job {job} is in the queue, but {JOBS} does not list it; cancel it" for job in unknown)
        )
    return [_status(job, out, latest.get(str(job.folder)), queue) for job in jobs]


def _status(job: Job, out: Path, latest: str | None, queue: Mapping[str, str]) -> Status:
    """State of a run, given its latest job and the queue."""
    run = Run(out / job.folder)
    if run.finished:
        return Status(job, "finished")
    if latest is None:
        return Status(job, "begun" if run.exists else "to do")
    executor, _, number = latest.partition("/")
    if latest in queue:
        return Status(job, queue[latest].lower(), number)
    log = out / f"{latest}_0_log.out"
    try:
        code = int(exit_code_file(out / executor, number).read_text())
        reason = f"{last_error(log) or 'ended'} (exit code {code}, see {log})"
    except (FileNotFoundError, ValueError):
        code, reason = None, f"killed, or never began (see {log})"
    return Status(job, "ended", number, f"{job.folder}: job {number}: {reason}", code)


def submit(
    jobs: Sequence[Job],
    out: Path,
    settings: Slurm,
    *,
    name: str,
    executor: Executor = "slurm",
    parallel: int = 0,
    report: Callable[[str], None] = lambda text: None,
    study: Study | None = None,
) -> list[Status]:
    """Submit the runs that are neither finished nor in the queue, without waiting for them.

    Args:
        jobs: runs of the study.
        out: folder of the study, on a file system that all hosts share.
        settings: resources of each run.
        name: name of the study, shown in the queue.
        executor: `slurm`, or `local`: all runs at once on this machine, for a test.
        parallel: maximum number of runs at a time (0: no limit).
        report: called with a line on the state of each run.
        study: the study, whose file is stored in `out`.

    Raises:
        InputError: submitit is missing, or the cluster rejects the jobs.
        ResourceError: the queue cannot be queried.
        ResodeError: runs have failed, a line each; raised after all jobs are submitted.
    """
    submitit = _import_submitit()
    with locked(jobs, out, study):
        found = statuses(jobs, out)
        due = [each.job for each in found if each.due]
        ids = iter(_submit(submitit, due, out, settings, name, executor, parallel) if due else ())
        found = [replace(each, state="submitted", id=next(ids)) if each.due else each for each in found]
    failures = []
    for each in found:
        if each.reason and each.code in (None, *STOPPED):
            report(each.reason)
        elif each.reason:
            resubmitted = f"; {each}" if each.state == "submitted" else ""
            failures.append((each.code or 0, each.reason + resubmitted))
        report(str(each))
    raise_failures(failures)
    return found


def refuse_queued(jobs: Sequence[Job], out: Path) -> None:
    """Refuse to train on this machine what is in a cluster's queue.

    Raises:
        InputError: a line for each such run.
    """
    queued = [each for each in statuses(jobs, out) if each.id and each.state != "ended"]
    if queued:
        raise InputError(*(f"{each}; wait for it, or cancel it" for each in queued))


def _submit(
    submitit: Any,
    jobs: Sequence[Job],
    out: Path,
    settings: Slurm,
    name: str,
    executor: Executor,
    parallel: int,
) -> list[str]:
    """Submit runs as one job array and list them in jobs.json; returns the job ids."""
    trainings = [Training(tuple(command(job, out)), Path.cwd(), settings.cpus) for job in jobs]
    try:
        with submitit.helpers.clean_env():  # this command may itself run in a job
            runner = submitit.AutoExecutor(
                out / executor,
                cluster=executor,
                slurm_max_num_timeout=MAX_REQUEUES,
                local_max_num_timeout=MAX_REQUEUES,
            )
            runner.update_parameters(
                name=f"resode-{name}", slurm_array_parallelism=parallel or len(jobs), **_parameters(settings)
            )
            ids = [made.job_id for made in runner.submit_array(trainings)]
    except (RuntimeError, OSError) as error:
        raise InputError(f"--executor {executor}: {str(error).strip().splitlines()[-1]}") from error
    new = {f"{executor}/{number}": str(job.folder) for number, job in zip(ids, jobs, strict=True)}
    older = {job: run for job, run in _read_jobs(out).items() if job not in new}  # local ids are reused
    atomic.write_json(out / JOBS, {**older, **new})
    return ids


def _parameters(settings: Slurm) -> dict[str, Any]:
    """Resources of a run by submitit's names; None is not requested."""
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
        # From SLURM 22.05 on `srun` does not inherit it from `sbatch`.
        "slurm_srun_args": None if settings.cpus is None else [f"--cpus-per-task={settings.cpus}"],
        "slurm_additional_parameters": {"requeue": True, **settings.sbatch},
    }


def _import_submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except (ImportError, RuntimeError):
        raise InputError("cluster jobs need submitit: pip install 'resode[slurm]'") from None


def _read_jobs(out: Path) -> dict[str, str]:
    """The run of each job, oldest job first."""
    try:
        return dict(json.loads((out / JOBS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise IntegrityError(
            f"{out / JOBS}: damaged; delete it once no job of this study is in the queue"
        ) from None


def _submitted(out: Path) -> set[str]:
    """All jobs of which submitit has files."""
    files = (path for executor in EXECUTORS for path in (out / executor).glob("*_submitted.pkl"))
    return {f"{path.parent.name}/{path.name.removesuffix('_submitted.pkl')}" for path in files}


def _queue(jobs: set[str]) -> dict[str, str]:
    """The state of those jobs that are pending or running."""
    slurm = {job.removeprefix("slurm/").partition("_")[0] for job in jobs if job.startswith("slurm/")}
    local = {job for job in jobs if job.startswith("local/") and _is_alive(job.removeprefix("local/"))}
    return {**(_squeue(sorted(slurm)) if slurm else {}), **dict.fromkeys(local, "RUNNING")}


def _squeue(ids: Sequence[str]) -> dict[str, str]:
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={','.join(ids)}"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ResourceError(
            f"squeue: {error}: the queue is unknown, so nothing is started; run this on the cluster, or "
            f"delete {JOBS} and the folder slurm"
        ) from None
    if answer.returncode and "Invalid job id" not in answer.stderr:  # SLURM has forgotten old jobs
        message = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise ResourceError(f"squeue: {message}: the queue is unknown, so nothing is started; try again")
    lines = (line.partition(" ") for line in answer.stdout.splitlines() if line.strip())
    states = {f"slurm/{job}": state.strip() or "UNKNOWN" for job, _, state in lines}
    return {job: state for job, state in states.items() if state not in ENDED}


def _is_alive(process: str) -> bool:
    """Whether this is (still) a process of submitit's local executor."""
    try:
        os.kill(int(process), 0)
        return sys.platform != "linux" or b"submitit" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
