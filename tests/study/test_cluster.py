"""No run is in the queue twice and none is lost, on submitit's local executor and a fake SLURM."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resode.cli import main
from resode.errors import DivergenceError, InputError, IntegrityError, ResourceError
from resode.study import cluster, read
from resode.training.records.run import Run
from tests.study import slurm

# A training that logs its events to `notes`, and ends as the file `end` says.
STUB = """
import signal, sys, time
from pathlib import Path

run = Path(sys.argv[1])
run.mkdir(parents=True, exist_ok=True)

def note(word):
    with (run / "notes").open("a") as file:
        print(word, file=file)

def stop(number, frame):
    note("asked")
    time.sleep(0.3)
    note("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
note("begun")
while not (run / "end").exists():
    time.sleep(0.02)
code, _, words = (run / "end").read_text().partition(" ")
if int(code):
    print("resode: " + words)
    sys.exit(int(code))
(run / "model.safetensors").touch()
(run / "summary.json").write_text("{}")
"""


def until(condition, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Study:
    """Two runs, on one executor."""

    def __init__(self, folder, executor):
        self.out, self.executor = folder / "out", executor
        (folder / "two.yaml").write_text("recipe: quickstart\nseeds: [0, 1]\nslurm: {minutes: 30, cpus: 1}")
        self.study = read(folder / "two.yaml")
        self.jobs = self.study.jobs()
        self.runs = [self.out / job.folder for job in self.jobs]
        self.reported = []

    def submit(self, **settings):
        self.reported.clear()
        slurm_settings = self.study.slurm.model_copy(update=settings)
        cluster.submit(
            self.jobs, self.out, slurm_settings, name="two", executor=self.executor,
            report=self.reported.append,
        )  # fmt: skip

    def states(self):
        return [each.state for each in cluster.statuses(self.jobs, self.out)]

    def ids(self):
        return [each.id for each in cluster.statuses(self.jobs, self.out)]

    def notes(self, number=0):
        file = self.runs[number] / "notes"
        return file.read_text().split() if file.is_file() else []

    def end(self, code=0, words="", number=0):
        (self.runs[number] / "end").write_text(f"{code} {words}")

    def task(self, number=0):
        """The process that submitit started for a run."""
        name = self.ids()[number]
        if self.executor == "slurm":
            return int((slurm.KNOWN / f"{name}.pid").read_text())
        return int(Path(f"/proc/{name}/task/{name}/children").read_text().split()[0])


@pytest.fixture
def started(monkeypatch):
    """The processes of the local executor; none outlives a test."""
    import submitit.local.local as local

    processes, start = [], local.start_controller
    monkeypatch.setattr(
        local, "start_controller", lambda **kw: processes.append(start(**kw)) or processes[-1]
    )
    yield processes
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait(900)


@pytest.fixture(params=["local", "slurm"])
def study(request, tmp_path, monkeypatch, started):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known").mkdir()
    slurm.install(tmp_path)
    monkeypatch.setattr(slurm, "KNOWN", tmp_path / "known")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "known"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(
        cluster, "command", lambda job, out: [sys.executable, "-S", "-c", STUB, str(out / job.folder)]
    )
    study = Study(tmp_path, request.param)
    yield study
    for run in study.runs:
        if run.exists():
            (run / "end").write_text("0")
    until(lambda: not set(study.states()) & {"running", "pending"})


def test_every_run_is_a_job_once(study):
    study.submit()
    ids = study.ids()
    until(lambda: study.notes(0) == study.notes(1) == ["begun"])
    assert study.states() == ["running", "running"]
    study.submit()
    assert study.ids() == ids
    assert study.reported == [
        f"{job.folder}: running as job {number}" for job, number in zip(study.jobs, ids, strict=True)
    ]
    with pytest.raises(InputError, match=rf"running as job {ids[0]}; wait for it"):
        cluster.refuse_queued(study.jobs, study.out)
    study.end(number=0)
    until(lambda: study.states() == ["finished", "running"])
    study.end(number=1)
    until(lambda: study.states() == ["finished"] * 2)
    study.submit()
    assert study.notes(0) == study.notes(1) == ["begun"]
    assert study.reported == [f"{job.folder}: finished" for job in study.jobs]


def test_before_its_time_is_up_a_run_saves_and_is_queued_again(study):
    """Some clusters send the signal to every process, and SIGTERM before it."""
    study.submit()
    until(lambda: study.notes() == study.notes(1) == ["begun"])
    ids = study.ids()
    task = study.task()
    (child,) = Path(f"/proc/{task}/task/{task}/children").read_text().split()
    os.kill(int(child), signal.SIGUSR2)
    os.kill(task, signal.SIGTERM)
    until(lambda: "asked" in study.notes())
    os.kill(task, signal.SIGUSR2)
    until(lambda: study.notes() == ["begun", "asked", "saved", "begun"])
    assert study.states() == ["running", "running"]
    assert study.ids() == ids
    study.end(number=0)
    study.end(number=1)
    until(lambda: study.states() == ["finished"] * 2)


def test_what_ends_early_is_submitted_again(study):
    """One is asked to stop and saves; one is killed, and its training saves, too."""
    study.submit()
    until(lambda: study.notes() == study.notes(1) == ["begun"])
    first = study.ids()
    os.kill(study.task(0), signal.SIGTERM)
    os.kill(study.task(1), signal.SIGKILL)
    until(lambda: study.states() == ["ended"] * 2)
    assert study.notes() == ["begun", "asked", "saved"]
    until(lambda: study.notes(1) == ["begun", "asked", "saved"])
    study.submit()
    assert not set(first) & set(study.ids())
    stopped, submitted, killed, _ = study.reported
    assert f"job {first[0]}: ended (exit code 143" in stopped
    assert "submitted as job" in submitted
    assert f"job {first[1]}: killed" in killed
    until(lambda: study.notes() == study.notes(1) == ["begun", "asked", "saved", "begun"])


def test_a_failure_is_reported_with_its_message_and_exit_code(study):
    study.submit()
    until(lambda: study.notes() == study.notes(1) == ["begun"])
    study.end(2, "no such data", 0)
    study.end(4, "diverged at iteration 3", 1)
    until(lambda: study.states() == ["ended"] * 2)
    first = study.ids()
    with pytest.raises(DivergenceError) as failed:
        study.submit()
    second = study.ids()
    missing, diverged = failed.value.messages
    assert f"job {first[0]}: no such data (exit code 2, see " in missing
    assert missing.endswith(f"submitted as job {second[0]}")
    assert f"job {first[1]}: diverged at iteration 3 (exit code 4, see " in diverged
    assert second[1] == first[1]  # it would diverge again
    until(lambda: study.notes() == ["begun"] * 2)
    assert study.notes(1) == ["begun"]


@pytest.mark.parametrize("study", ["slurm"], indirect=True)
def test_the_resources_of_a_run_reach_sbatch(study):
    study.submit(partition="gpu", account="vision", memory="16G", gpus=1, setup=["module load cuda"],
                 sbatch={"constraint": "a100"})  # fmt: skip
    script = (slurm.KNOWN / "1.sh").read_text()
    for line in ("--partition=gpu", "--account=vision", "--mem=16G", "--gpus-per-node=1", "--time=30",
                 "--cpus-per-task=1", "--constraint=a100", "--array=0-1%2", "--requeue",
                 "--signal=USR2@90", "--job-name=resode-two"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "\nmodule load cuda\n" in script
    assert re.search(r"^srun .*--cpus-per-task=1 ", script, re.MULTILINE)
    until(lambda: study.notes() == study.notes(1) == ["begun"])


@pytest.mark.parametrize("study", ["slurm"], indirect=True)
def test_a_cluster_that_rejects_jobs_or_does_not_answer_is_reported(study):
    with pytest.raises(InputError, match="executor slurm: sbatch: error: invalid partition"):
        study.submit(partition="nowhere")
    assert study.ids() == ["", ""]
    study.submit()
    until(lambda: study.notes() == study.notes(1) == ["begun"])
    (slurm.KNOWN / "down").touch()
    for ask in (study.submit, study.states):
        with pytest.raises(ResourceError, match="Unable to contact"):
            ask()
    (slurm.KNOWN / "down").unlink()
    assert study.states() == ["running"] * 2
    for state in slurm.KNOWN.glob("*.state"):  # SLURM forgets jobs minutes after their end
        state.rename(state.with_suffix(".hidden"))
    assert study.states() == ["ended"] * 2
    for state in slurm.KNOWN.glob("*.hidden"):
        state.rename(state.with_suffix(".state"))


def test_a_job_in_the_queue_that_is_not_listed_stops_the_study(study):
    """The submitting command was killed between submission and the writing of jobs.json."""
    study.submit()
    until(lambda: study.notes() == study.notes(1) == ["begun"])
    listed = study.out / cluster.JOBS
    content = listed.read_text()
    jobs = json.loads(content)
    listed.write_text(json.dumps(dict([jobs.popitem()])))
    (lost,) = jobs
    for ask in (study.submit, study.states, lambda: cluster.refuse_queued(study.jobs, study.out)):
        with pytest.raises(
            ResourceError, match=f"job {lost} is in the queue, but jobs.json does not list it"
        ):
            ask()
    listed.write_text("{")
    with pytest.raises(IntegrityError, match=r"jobs.json: damaged; delete it"):
        study.states()
    listed.write_text(content)
    assert study.notes() == study.notes(1) == ["begun"]


@pytest.mark.parametrize("study", ["slurm"], indirect=True)
def test_a_finished_study_needs_no_cluster(study, monkeypatch):
    study.submit()
    until(lambda: study.notes() == study.notes(1) == ["begun"])
    study.end(number=0)
    study.end(number=1)
    until(lambda: study.states() == ["finished"] * 2)
    monkeypatch.setenv("PATH", "")
    assert study.states() == ["finished"] * 2


def test_a_job_loads_no_pytorch():
    code = "import sys, resode.study.job; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_study_on_the_local_executor(tmp_path, monkeypatch, capsys, started):
    """From the command line; one job is killed in its second epoch, and goes on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("widths.yaml").write_text(
        "recipe: quickstart\nset: {batch_size: 256, precision: fp32, model.widths: [4, 4, 8]}\n"
        "arms: {plain: {set: {epochs: 12}}, long: {set: {epochs: 24}}}"  # longer than the commands take
    )
    plain, long = (Path("studies/widths") / arm / "seed0" for arm in ("plain", "long"))

    def study(*words):
        with pytest.raises(SystemExit) as exit_:
            main(["study", "widths.yaml", *words])
        said = capsys.readouterr()
        return exit_.value.code or 0, said.out, said.err

    code, out, err = study("--executor", "local", "--dry-run")
    assert (code, out.count("to do")) == (0, 2)
    assert "2 jobs would be submitted to local: minutes=240, gpus=0" in err
    assert not Path("studies").exists()
    code, _, err = study("--executor", "local")
    assert (code, err.count("submitted as job")) == (0, 2), err
    code, _, err = study("--executor", "local")
    assert (code, err.count("running as job")) == (0, 2), err
    code, _, err = study()
    assert (code, err.count("; wait for it, or cancel it")) == (2, 2), err

    until((long / "metrics.csv").is_file)
    listed = json.loads(Path("studies/widths/jobs.json").read_text())
    job = next(key for key, run in listed.items() if run == "long/seed0").removeprefix("local/")
    os.kill(int(Path(f"/proc/{job}/task/{job}/children").read_text().split()[0]), signal.SIGKILL)
    started[1].wait(900)
    log = Path(f"studies/widths/local/{job}_0_log.out")
    until(lambda: "stopped at iteration" in log.read_text())
    code, _, err = study("--executor", "local")
    assert code == 0
    assert err.count(f"long/seed0: job {job}: killed") == err.count("long/seed0: submitted as job") == 1, err
    until(lambda: Run(plain).finished and Run(long).finished)
    code, out, err = study("--executor", "local")
    assert (code, err.count(": finished")) == (0, 2)
    assert "plain" in out
    assert len(list(Path("studies/widths/local").glob("*_submitted.pkl"))) == 3
    assert [Run(run).read_summary()["resumes"] for run in (plain, long)] == [0, 1]


def test_a_missing_submitit_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    Path("one.yaml").write_text("recipe: quickstart")
    with pytest.raises(SystemExit) as exit_:
        main(["study", "one.yaml", "--executor", "slurm"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == ("resode: cluster jobs need submitit: pip install 'resode[slurm]'\n")


def test_all_mistakes_of_the_section_are_reported(tmp_path):
    (tmp_path / "one.yaml").write_text("recipe: quickstart\nslurm: {partitoin: gpu, gpus: 2, memory: lots}")
    with pytest.raises(InputError) as error:
        read(tmp_path / "one.yaml")
    for key, message in zip(("gpus", "memory", "partitoin"), error.value.messages, strict=True):
        assert f"'slurm.{key}'" in message
