"""Faults: no kill loses a run, no flipped bit gives a number.

    python benchmarks/faults.py [--kills 1000] [--flips 300] [--every 1] [--seed 0] [--json]

**Sweep**: a short training is killed (SIGKILL) before each of its file operations in turn, then resumed. A
trial has *survived* if the resumed run ends in the bits of the run without a kill and leaves no temporary
file; else it is *lost*. Every other one is killed again while it resumes. **Random kills**: the same, after a
random time. **Flips**: a bit of a file of a finished run, of its last checkpoint, or of shipped weights is
flipped. Reading is *silent* if it gives other values without an error or a message. Trials are forked from
one process that has torch loaded and runs a single thread.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from resode import pretrained, weights
from resode.errors import ResodeError
from resode.training import Experiment
from resode.training.launch import train
from resode.training.records import checkpoints, reader
from resode.training.records.environment import environment

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate")


@dataclass(frozen=True)
class Trial:
    """One killed run: where it was killed, and what became of it."""

    kind: str
    at: float
    twice: bool
    lost: str = ""


def experiment() -> Experiment:
    """Three epochs of eleven steps on the digits, with one checkpoint kept and an average of the weights."""
    return Experiment.from_recipe(
        "quickstart",
        {
            "model": {"name": "digits_resnet8", "widths": [4, 4, 8]},
            "epochs": 3,
            "batch_size": 128,
            "data.validation": 0.2,
            "precision": "fp32",
            "compile": False,
            "device": "cpu",
            "checkpoint.keep": 1,
            "average": {"decay": 0.9, "samples": 128},
        },
    )


def digest(run: Path) -> str:
    """SHA-256 of the final weights and metrics (without times) of a finished run."""
    rows = [line.split(",")[:7] for line in (run / "metrics.csv").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    content = (run / "model.safetensors").read_bytes() + json.dumps([rows, summary["test"]]).encode()
    return hashlib.sha256(content).hexdigest()


def in_child(action: Callable[[], None]) -> int:
    """Run an action in a forked process; returns its exit code, or minus the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
                action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_operations(on_operation: Callable[[int, str], None]) -> None:
    """Call `on_operation` before each operation that changes the file system, numbered from 1."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (opened and arguments[0] != os.devnull) or event in CHANGES:
            count += 1
            on_operation(count, f"{event} {arguments[0]}")

    sys.addaudithook(hook)


def killed_before(number: int) -> None:
    """From here on, kill this process before its file operation of that number."""

    def kill(count: int, what: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    count_operations(kill)


def killed_after(seconds: float) -> None:
    """Kill this process after some seconds."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def trial(
    kind: str, arm: Callable[[], None], at: float, again: Callable[[], None] | None, right: str
) -> Trial:
    """Kill a run once or twice, resume it, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"

        def start() -> None:
            arm()
            train(None, experiment(), out=out)

        def resume() -> None:
            if again is not None and not marked.exists():
                marked.touch()
                again()
            train(None, experiment(), out=out, resume=True)

        marked = Path(folder) / "resumed"
        in_child(start)
        if again is not None:
            in_child(resume)
        code = in_child(resume)
        if code != 0:
            lost = f"resume ended with {code}"
        elif digest(out) != right:
            lost = "ended in other bits"
        elif left := [p.name for p in out.rglob(".*") if p.name != ".lock"]:
            lost = f"leftovers {left}"
        else:
            lost = ""
        return Trial(kind, at, again is not None, lost)


def reference() -> tuple[str, int, float]:
    """Digest, number of file operations, and seconds of the run without a kill."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "run", Path(folder) / "log"
        log.touch()

        def count() -> None:
            descriptor = os.open(log, os.O_WRONLY)

            def note(number: int, what: str) -> None:
                os.pwrite(descriptor, f"{number:9}".encode(), 0)

            count_operations(note)
            train(None, experiment(), out=out)

        train(None, experiment(), out=Path(folder) / "warm")
        begin = time.monotonic()
        if in_child(count):
            raise SystemExit("the run without a kill failed")
        return digest(out), int(log.read_text()), time.monotonic() - begin


def sweep(right: str, operations: int, every: int = 1) -> Iterator[Trial]:
    """Kill before each (or every k-th) file operation; every other trial is killed while it resumes, too."""
    for number in range(1, operations + 1, every):
        again = partial(killed_before, 1 + number % 17) if number // every % 2 else None
        yield trial("operation", partial(killed_before, number), number, again, right)


def at_random(right: str, seconds: float, kills: int, seed: int) -> Iterator[Trial]:
    """Kill after a random time within the length of the run."""
    chance = random.Random(seed)
    for _ in range(kills):
        at = chance.uniform(0, seconds)
        yield trial("time", partial(killed_after, at), at, None, right)


def content(run: Path) -> tuple[Any, ...]:
    """All that is read from a run directory: records, weights, the newest checkpoint; messages come first."""
    record = reader.read(run)
    checkpoint, damaged = checkpoints.newest(run / "checkpoints")
    assert checkpoint is not None
    tensors = {**weights.load(run / "model.safetensors").state_dict(), **checkpoint.training}
    tensors |= {f"saved.{name}": t for name, t in weights.load(checkpoint.model).state_dict().items()}
    numbers = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    known = record.summary, dict(record.experiment), record.environment, record.epochs, dict(checkpoint.state)
    return damaged, known, numbers


def flips(number: int, seed: int) -> Iterator[Trial]:
    """Flip a bit of a file and read the run; one in five hits a copy of shipped weights."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        out, shipped = Path(folder) / "run", Path(folder) / "shipped.safetensors"
        train(None, experiment(), out=out)
        shutil.copy(str(pretrained.file(pretrained.names()[0])), shipped)
        right, own = content(out), weights.load(shipped).state_dict()
        files = sorted(
            file for file in out.rglob("*") if file.is_file() and file.name not in (".lock", "report.html")
        )
        for _ in range(number):
            file = shipped if chance.random() < 0.2 else chance.choice(files)
            before = file.read_bytes()
            harmed, place = bytearray(before), chance.randrange(len(before))
            harmed[place] ^= 1 << chance.randrange(8)
            file.write_bytes(harmed)
            try:
                if file == shipped:
                    now = weights.load(shipped).state_dict()
                    silent = any(not torch.equal(own[name], now[name]) for name in own)
                else:
                    damaged, *found = content(out)
                    silent = not damaged and found != list(right[1:])
            except ResodeError:
                silent = False
            finally:
                file.write_bytes(before)
            yield Trial(f"bit of {file.name}", place, False, "other values without a word" if silent else "")


def main() -> None:
    """Run all trials and print how many survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="random kills")
    parser.add_argument("--flips", type=int, default=300, help="flipped bits")
    parser.add_argument("--every", type=int, default=1, help="of the sweep, try every k-th operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    right, operations, seconds = reference()
    print(f"{operations} file operations, {seconds:.2f} s", file=sys.stderr)
    killed = [
        *sweep(right, operations, options.every),
        *at_random(right, seconds, options.kills, options.seed),
    ]
    flipped = [*flips(options.flips, options.seed)]
    bad = [each for each in (*killed, *flipped) if each.lost]
    for each in bad:
        print(f"{each.kind} {each.at:g}{', twice' if each.twice else ''}: {each.lost}", file=sys.stderr)
    lost, silent = sum(bool(each.lost) for each in killed), sum(bool(each.lost) for each in flipped)
    record = {
        "command": "python benchmarks/faults.py " + " ".join(sys.argv[1:]),
        "operations": operations,
        "kills": len(killed),
        "lost": lost,
        "flips": len(flipped),
        "silent": silent,
        "environment": environment(torch.device("cpu")),
    }
    print(json.dumps(record, indent=2) if options.json else {key: record[key] for key in list(record)[:-1]})
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
