"""A fake SLURM on this machine: `sbatch`, `srun`, `squeue` and `scontrol`, as far as submitit uses them.

Jobs begin at once. The folder FAKE_SLURM holds `ID.state` and `ID.pid` (of its task) for each job.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

KNOWN = Path(os.environ.get("FAKE_SLURM", "."))


def install(folder: Path) -> None:
    """Create the commands."""
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        script.chmod(0o755)


def set_state(name: str, state: str) -> None:
    """Replace the state of a job atomically, as others read it."""
    new = KNOWN / f"{name}.state.new"
    new.write_text(state)
    new.replace(KNOWN / f"{name}.state")


def sbatch(file: str) -> None:
    text = Path(file).read_text()
    if "nowhere" in text:
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = len(list(KNOWN.glob("*.sh"))) + 1
    script = KNOWN / f"{number}.sh"
    script.write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for index in range(int(array[1]) + 1) if array else (None,):
        name = str(number) if index is None else f"{number}_{index}"
        own = {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
        environment = {**os.environ, "SLURM_JOB_ID": name, **({} if index is None else own)}
        set_state(name, "PENDING")
        subprocess.Popen(
            [sys.executable, "-S", __file__, "job", name, str(script)],
            env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(f"Submitted batch job {number}")


def job(name: str, script: str) -> None:
    again = KNOWN / f"{name}.again"
    while True:
        set_state(name, "RUNNING")
        code = subprocess.run(["bash", script]).returncode
        if not again.exists():
            break
        again.unlink()
    set_state(name, "FAILED" if code else "COMPLETED")


def srun(*words: str) -> None:
    number, name = os.environ["SLURM_JOB_ID"].partition("_")[0], os.environ["SLURM_JOB_ID"]
    first = next(i for i, word in enumerate(words) if "python" in Path(word).name)
    log = words[words.index("--output") + 1].replace("%A_%a", name).replace("%j", name).replace("%A", number)
    descriptor = os.open(log.replace("%t", "0"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    (KNOWN / f"{name}.pid").write_text(str(os.getpid()))
    os.execv(words[first], words[first:])


def squeue(*words: str) -> None:
    if (KNOWN / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    asked = next(word for word in words if word.startswith("--jobs=")).removeprefix("--jobs=").split(",")
    states = {p.stem: p.read_text() for p in KNOWN.glob("*.state") if p.stem.partition("_")[0] in asked}
    if not states:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print("\n".join(f"{name} {state}" for name, state in states.items()))


def scontrol(word: str, name: str) -> None:
    assert word == "requeue"
    (KNOWN / f"{name}.again").touch()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
