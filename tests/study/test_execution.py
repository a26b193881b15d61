"""Runs of a study finish, stop, fail and resume independently of each other."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resode.cli import main, study
from resode.errors import InputError, ResourceError, Stopped
from resode.report.comparison import grouped
from resode.study import Progress, execute, read
from resode.study.execution import unfinished
from resode.training.records.run import Run

TEXT = """
recipe: quickstart
set: {epochs: 2, data.validation: 0.2, precision: fp32}
arms:
  plain: {set: {model.widths: [4, 4, 8]}}
  wide: {set: {model.widths: [8, 8, 8]}}
seeds: [0, 1]
"""


@pytest.fixture
def plan(tmp_path):
    def written(text=TEXT):
        (tmp_path / "widths.yaml").write_text(text)
        return read(tmp_path / "widths.yaml")

    return written


class Recorder(Progress):
    def __init__(self):
        self.events = []

    def started(self, job, left):
        self.events.append(("started", str(job.folder), left))

    def finished(self, job, summary):
        self.events.append(("finished", str(job.folder), summary["status"]))

    def failed(self, job, message):
        self.events.append(("failed", str(job.folder), message))


@pytest.mark.slow
def test_a_study_runs_is_compared_and_is_not_repeated(plan, tmp_path, capsys):
    plan(TEXT + "choose: validation")
    words = ["study", str(tmp_path / "widths.yaml"), "--out", str(tmp_path / "out"), "--jobs", "2"]

    def said():
        with pytest.raises(SystemExit) as exit_:
            main(words)
        assert not exit_.value.code
        return capsys.readouterr()

    first = said()
    assert first.err.count("begins") == 4
    assert "chosen on the held-out images: " in first.out
    folders = [tmp_path / "out" / arm / f"seed{seed}" for arm in ("plain", "wide") for seed in (0, 1)]
    summaries = [Run(folder).read_summary() for folder in folders]
    assert all(summary["test"] is None for summary in summaries)
    best = min(("plain", "wide"), key=lambda arm: sum(
        s["validation"]["top1_error"] for f, s in zip(folders, summaries, strict=True) if f.parent.name == arm
    ))  # fmt: skip
    assert f"held-out images: {best} (" in first.out
    assert "| plain | 2 |" in (tmp_path / "out" / "comparison.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Validation error of the last epoch" in page  # the study chooses by it, wherever it is read again
    assert read(tmp_path / "out" / "study.yaml") == read(tmp_path / "widths.yaml")
    changed = [folder.stat().st_mtime_ns for folder in folders]
    again = said()
    assert "0 to do" in again.err
    assert again.out == first.out
    assert [folder.stat().st_mtime_ns for folder in folders] == changed
    groups = grouped([tmp_path / "out"])
    assert [(group.name, sorted(group.runs)) for group in groups] == [("plain", [0, 1]), ("wide", [0, 1])]

    (tmp_path / "out" / "wide" / "seed1").rename(tmp_path / "aside")  # an incomplete study chooses nothing
    incomplete = plan(TEXT + "choose: validation")
    study._compare(incomplete, incomplete.jobs(), tmp_path / "out")
    printed = capsys.readouterr()
    assert "1 of 4 runs are not finished" in printed.err
    assert "chosen" not in printed.out
    mine = "# mine\n" + (tmp_path / "widths.yaml").read_text()
    (tmp_path / "out" / "study.yaml").write_text(mine + "\nname: widths\n")
    said()
    assert (tmp_path / "out" / "study.yaml").read_text().startswith("# mine")
    page = (tmp_path / "out" / "report.html").stat().st_mtime_ns
    plan(TEXT.replace("epochs: 2", "epochs: 3"))
    with pytest.raises(SystemExit) as exit_:
        main(words)
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert "was started with" in printed.err
    assert printed.out == ""  # a study that is refused is not compared
    assert (tmp_path / "out" / "report.html").stat().st_mtime_ns == page
    with pytest.raises(InputError, match=r"was started with model\.widths=.*, now it is"):
        execute(plan(TEXT.replace("[4, 4, 8]", "[4, 4, 4]") + "choose: validation").jobs(), tmp_path / "out")


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_alone(plan, tmp_path):
    jobs = plan().jobs()
    taken = tmp_path / "out" / jobs[0].folder
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("mine")  # a folder that holds no run is not written over
    recorder = Recorder()
    with pytest.raises(InputError, match=r"plain/seed0: .*is not empty and holds no run"):
        execute(jobs, tmp_path / "out", progress=recorder, parallel=2)
    assert sorted(event[0] for event in recorder.events) == ["failed"] + ["finished"] * 3 + ["started"] * 4
    assert unfinished(jobs, tmp_path / "out") == 1
    (taken / "notes.txt").unlink()
    execute(jobs, tmp_path / "out")
    assert unfinished(jobs, tmp_path / "out") == 0


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_and_ends_in_the_same_bits(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = [job for job in plan(TEXT.replace("epochs: 2", "epochs: 6")).jobs() if job.seed == 0]
    out = tmp_path / "out"

    def stop_when_begun():
        end = time.monotonic() + 900
        while not (out / jobs[0].folder / "metrics.csv").is_file() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_begun, daemon=True).start()
    with pytest.raises(Stopped, match="resume with the same command"):
        execute(jobs, out)
    assert (out / jobs[0].folder / "checkpoints").is_dir()
    assert unfinished(jobs, out) == 2
    execute(jobs, out)
    for job in jobs:  # the second run had the worker of the first
        whole = [sys.executable, "-m", "resode", "train", *job.arguments, "--out", str(tmp_path / job.arm)]
        subprocess.run(whole, check=True, capture_output=True)
        weights = [folder / "model.safetensors" for folder in (out / job.folder, tmp_path / job.arm)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_runs_share_a_worker_and_one_that_dies_is_replaced(plan, tmp_path, monkeypatch):
    jobs = plan(TEXT.replace("epochs: 2", "epochs: 30")).jobs()[:3]
    workers, start = [], subprocess.Popen

    def counted(*words, **options):
        workers.append(start(*words, **options))
        return workers[-1]

    class Killer(Recorder):
        def started(self, job, left):
            super().started(job, left)
            if job == jobs[1]:
                threading.Thread(target=kill_when_begun, args=(tmp_path / "out" / job.folder,)).start()

    def kill_when_begun(folder):
        end = time.monotonic() + 120
        while not (folder / "metrics.csv").is_file() and time.monotonic() < end:
            time.sleep(0.01)
        workers[0].kill()

    monkeypatch.setattr(subprocess, "Popen", counted)
    recorder = Killer()
    with pytest.raises(ResourceError, match=r"wide/seed0: ended with code -9 \(see .*seed0.log\)"):
        execute(jobs, tmp_path / "out", progress=recorder)
    ends = [event[0] for event in recorder.events if event[0] != "started"]
    assert ends == ["finished", "failed", "finished"]
    assert len(workers) == 2  # the second run had the worker of the first, the third one of its own
    assert unfinished(jobs, tmp_path / "out") == 1


def test_one_study_at_a_time(plan, tmp_path):
    (tmp_path / "out").mkdir()
    with Run(tmp_path / "out").lock(), pytest.raises(InputError, match="another process"):
        execute(plan().jobs(), tmp_path / "out")
