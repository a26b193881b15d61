"""From an experiment to a finished run: start or resume, train, evaluate once on the test images, record."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resode import atomic, weights
from resode.data import hub
from resode.errors import InputError, ResodeError, ResourceError
from resode.training.loop import divergence
from resode.training.loop.progress import Observer
from resode.training.loop.trainer import Trainer
from resode.training.process.distributed import World, process_group, restarted_by_torchrun
from resode.training.process.signals import StopRequest, listening
from resode.training.process.sync_batchnorm import revert_sync_batchnorm
from resode.training.recipe.experiment import Experiment
from resode.training.records import checkpoints
from resode.training.records.environment import environment
from resode.training.records.run import Run
from resode.training.setup.changes import changed
from resode.training.setup.preparation import Setup, model_of, prepare


@dataclass(frozen=True)
class Result:
    """A finished run: the trained network (in evaluation mode) and its summary."""

    module: nn.Module
    run: Run
    summary: dict[str, Any]

    @property
    def test_error(self) -> float | None:
        """Top-1 error on the test images in percent, where the data has any."""
        return self.summary["test"]["top1_error"] if self.summary["test"] else None


def default_directory(experiment: Experiment) -> Path:
    """`runs/he2016-resnet20-seed0`."""
    return Path("runs") / f"{experiment.name.replace('/', '-')}-seed{experiment.seed}"


def train(
    module: nn.Module | None,
    experiment: Experiment,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Train a network as the experiment says, and leave a run directory.

    Args:
        module: the network, (N, C, H, W) -> logits (N, classes), trained in place (but where `refine` or
            `twist` goes on with another one, which the result holds); None builds `experiment.model`.
        experiment: `Experiment.from_recipe("he2016/resnet20")`.
        out: the run directory; by default `runs/<recipe>-seed<seed>`.
        resume: go on with the run that is there, from any step; without one, start.
        observer: is told what happens.

    Raises:
        InputError: what does not fit together, or a directory that holds another run.
        DivergenceError: NaN or infinity; names step and layer, saves nothing of it.
        Stopped: a signal came; all is saved.
        ResourceError: disk or device do not suffice; the last checkpoint is whole.
    """
    with process_group(experiment.device) as world:
        run = Run(Path(out) if out is not None else default_directory(experiment))
        told = observer if observer is not None and world.first else Observer()
        if any(world.all_gather(restarted_by_torchrun())):
            _refuse_what_ended(run, world)
            resume = True
        with _marked(run, world):
            return _train(module, experiment, run, resume, told, world)


def _train(
    module: nn.Module | None,
    experiment: Experiment,
    run: Run,
    resume: bool,
    observer: Observer,
    world: World,
) -> Result:
    if run.path.exists() and not run.path.is_dir():
        raise InputError(f"{run.path}: is a file; choose another --out")
    module = getattr(module, "_orig_mod", module)  # of torch.compile; `compile: true` compiles here
    with contextlib.ExitStack() as held:
        if world.first:
            fresh = not run.path.exists()
            held.enter_context(run.lock())
            held.enter_context(_leaving_nothing(run, fresh))
            _refuse_unfit(run, resume)
        resumed, finished = world.broadcast((run.exists, run.finished))
        if resumed:
            stored = agreed(experiment if module is None else experiment.replace(model=model_of(module)), run)
            if finished:
                observer.message(f"{run.path}: this run is finished; nothing is left to do")
                observer.finished(run.read_summary())
                return _finished(run, module)
            experiment = stored.replace(init=None)  # its weights have been read: a checkpoint follows
        setup = _prepared(experiment, module, observer, world)
        trainer = Trainer(setup, run, observer)
        for note in (*setup.notes, *_about_data(setup)):
            observer.message(note)
        with listening() as stop, _telling_how_to_go_on(run):
            if resumed:
                _resume(trainer)
            else:
                _begin(trainer)
            _mark(run, world)
            observer.started(setup, trainer.position.epoch)
            trainer.train(stop)
            return _finish(trainer, stop)


# ---------------------------------------------------------------- torchrun --max-restarts

MARK = ".restarts"  # in the run directory while torchrun may start its processes again


def _mark(run: Run, world: World) -> None:
    """From here on a process that dies is replaced."""
    if world.first and world.size > 1:
        atomic.write_text(run.path / MARK, "")


@contextlib.contextmanager
def _marked(run: Run, world: World) -> Iterator[None]:
    """A run that ends on purpose (a stop, a mistake, divergence, its end) is not started again."""
    try:
        yield
    except ResourceError:  # another process has gone, say
        raise
    except ResodeError:
        _unmark(run, world)
        raise
    else:
        _unmark(run, world)


def _unmark(run: Run, world: World) -> None:
    if world.first:
        with contextlib.suppress(OSError):
            (run.path / MARK).unlink()


def _refuse_what_ended(run: Run, world: World) -> None:
    if not world.broadcast((run.path / MARK).is_file()):
        raise InputError(f"{run.path}: ended on purpose, or never began; it is not started again")


def _prepared(experiment: Experiment, module: nn.Module | None, observer: Observer, world: World) -> Setup:
    """The set-up: the first process resolves the experiment, and fills the cache; the others take it over."""
    own = experiment.replace(device=world.device(experiment.device))
    if world.first:
        setup = prepare(own, module, observer.message, world)
        world.broadcast(setup.experiment)
        return setup
    resolved = world.broadcast(own).replace(device=own.device)
    setup = prepare(resolved, module, observer.message, world)
    torch.manual_seed(resolved.seed + (world.rank << 32))  # its dropout is its own
    return setup


@contextlib.contextmanager
def _leaving_nothing(run: Run, fresh: bool) -> Iterator[None]:
    """A run that never began takes away the folder that it made for itself."""
    try:
        yield
    except BaseException:
        if fresh and not run.exists:
            with contextlib.suppress(OSError):  # what else lies in it stays
                (run.path / ".lock").unlink()
                run.path.rmdir()
        raise


@contextlib.contextmanager
def _telling_how_to_go_on(run: Run) -> Iterator[None]:
    """A run that the disk had no room for goes on once it has."""
    try:
        yield
    except ResourceError as error:
        if run.exists:
            mend = f"the last checkpoint is whole: make room, then: resode train --resume --out {run.path}"
            raise ResourceError(*error.messages, mend) from error
        raise


# What a run leaves behind that could not write its first checkpoint.
_LEFTOVERS = frozenset({".lock", ".restarts", "environment.json", "checkpoints"})


def _about_data(setup: Setup) -> Iterator[str]:
    """What the user should know of the data before training begins."""
    skipped = setup.dataset.skipped
    if skipped:
        yield f"{len(skipped)} images were skipped; summary.json lists them all"
        yield from (f"skipped: {line}" for line in skipped[:5])
    if setup.dataset.test is None:
        yield f"{setup.experiment.data.source} has no test images: nothing will be tested at the end"


def _refuse_unfit(run: Run, resume: bool) -> None:
    if not run.exists:
        if any(p.name not in _LEFTOVERS for p in run.path.iterdir()):
            raise InputError(f"{run.path}: is not empty and holds no run; choose another --out")
        return
    if not resume:
        state = "a finished run" if run.finished else "an unfinished run"
        mend = "show it with `resode report`" if run.finished else "go on with --resume"
        raise InputError(f"{run.path}: holds {state}; {mend}, or choose another --out")


def agreed(experiment: Experiment, run: Run) -> Experiment:
    """The stored experiment of a run, if what is asked for now does not contradict it.

    Raises:
        InputError: a line for each setting that differs.
    """
    stored = run.read_experiment()
    asked, kept = experiment.model_dump(mode="json"), stored.model_dump(mode="json")
    if hub.unpinned(kept["data"]["source"]) == asked["data"]["source"]:
        asked["data"]["source"] = kept["data"]["source"]  # the commit that the run began with
    free = ("about.", "device", "cuda_graph", "init.sha256", "init.optimizer_sha256", "plugins")
    differing = [
        f"{run.path}: was started with {path}={kept_value}, now it is {asked_value}; "
        "leave the change out, or choose another --out"
        for path, asked_value, kept_value in _differences(asked, kept)
        if asked_value not in (None, "auto", "") and not path.startswith(free)
    ]
    if differing:
        raise InputError(*differing)
    taken = {"device": experiment.device, "cuda_graph": experiment.cuda_graph}
    return stored.replace(**{key: value for key, value in taken.items() if value != "auto"})


def _differences(asked: Any, kept: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(asked, dict) and isinstance(kept, dict):
        return [
            difference
            for key, value in asked.items()
            for difference in _differences(value, kept.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if asked == kept else [(path, asked, kept)]


def _begin(trainer: Trainer) -> None:
    """Write what a run starts with; the first checkpoint shows that the disk takes it."""
    run, setup, world = trainer.run, trainer.setup, trainer.world
    broken = divergence.not_finite(setup.module)
    if broken is not None:
        raise InputError(f"the initial weights are not finite: {broken}; give other weights")
    tensors = [*setup.module.state_dict().values()]
    state = sum(t.numel() * t.element_size() for t in tensors)
    if world.first:
        run.require_space((setup.experiment.checkpoint.keep + 2) * 3 * state)
        atomic.write_json(run.path / "environment.json", environment(setup.device, world.size))
    trainer.start_from(setup.optimizer_state)
    trainer.save()
    if world.first:
        run.write_experiment(setup.experiment)


def _resume(trainer: Trainer) -> None:
    run, observer = trainer.run, trainer.observer
    checkpoint, damaged = checkpoints.newest(run.checkpoints)
    for line in damaged:
        observer.message(f"{line}; an older checkpoint is used")
    if checkpoint is None:
        raise InputError(f"{run.path}: holds no checkpoint; start anew with another --out")
    trainer.restore(checkpoint)
    trainer.position.resumes += 1
    if trainer.world.first:
        run.write_rows(trainer.rows)
        _note_environment(run, environment(trainer.setup.device, trainer.world.size), observer)
    position = trainer.position
    observer.message(
        f"resuming at iteration {position.iteration} (epoch {position.epoch + 1}, step {position.step} "
        f"of {trainer.steps})"
    )


def _note_environment(run: Run, now: dict[str, Any], observer: Observer) -> None:
    """Add the present environment to the record where it differs from the first."""
    path = run.path / "environment.json"
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        first = dict(now)
    last = {"processes": 1, **first.get("resumed", [first])[-1]}
    keys = ("torch", "cpu", "cpu_capability", "threads", "device", "gpu")
    changed = [f"{key} {last.get(key)} -> {now[key]}" for key in keys if last.get(key) != now[key]]
    if changed:
        observer.message(
            f"the machine has changed ({', '.join(changed)}): the run goes on, but not in the same bits"
        )
    if (count := now["processes"]) != (earlier := last["processes"]):
        observer.message(
            f"{count} processes instead of {earlier}: order and augmentation of the images stay the same; "
            "rounding, dropout and what BatchNorm takes for a batch do not (sync_batchnorm: the whole one)"
        )
    if changed or count != earlier:
        first.setdefault("resumed", []).append(now)
        atomic.write_json(path, first)


def _finish(trainer: Trainer, stop: StopRequest) -> Result:
    """The one evaluation on the test images, the final weights, the summary."""
    setup, run = trainer.setup, trainer.run
    module = trainer.evaluated_module()
    loader = setup.test()
    test = trainer.evaluate(module, loader, stop) if loader is not None else None
    summary = _summary(trainer, test.record(setup.dataset.classes) if test else None)
    results: dict[str, Any] = {"epochs": setup.experiment.epochs}
    if trainer.average is not None:
        results["averaged"] = True
    if test is not None:
        results |= {"test_error": round(test.top1_error, 6), "test_samples": test.samples}
    if trainer.world.first:
        atomic.write(run.model, lambda path: setup.save_weights(module, path, results))
        run.write_summary(summary)
        trainer.observer.finished(summary)
    revert_sync_batchnorm(trainer.module)
    if module is not trainer.module:
        trainer.module.load_state_dict(module.state_dict())
    return Result(trainer.module.eval(), run, summary)


def _summary(trainer: Trainer, test: dict[str, Any] | None) -> dict[str, Any]:
    setup, position, rows = trainer.setup, trainer.position, trainer.rows
    experiment, last = setup.experiment, rows[-1]
    seconds = sum(float(row["seconds"]) for row in rows)
    validation = None
    if setup.validation is not None:
        accuracy = float(last["validation_accuracy"])
        validation = {
            "loss": float(last["validation_loss"]),
            "top1_accuracy": round(accuracy, 6),
            "top1_error": round(100 - accuracy, 6),
            "samples": setup.validation.samples,
        }
    return {
        "status": "finished",
        "name": experiment.name,
        "model": experiment.model.name if experiment.model else type(setup.module).__name__,
        "parameters": setup.parameters,
        "seed": experiment.seed,
        "epochs": experiment.epochs,
        "iterations": position.iteration,
        "train": {"loss": float(last["train_loss"]), "accuracy": float(last["train_accuracy"])},
        "validation": validation,
        "test": test,
        "seconds": round(position.wall_seconds + time.monotonic() - trainer.began, 1),
        "training_seconds": round(seconds, 1),
        "images_per_second": round(experiment.epochs * setup.training.samples / max(seconds, 1e-9), 1),
        "peak_memory_bytes": max(int(row["peak_memory_bytes"]) for row in rows),
        "data": {
            "name": experiment.data.source,
            "fingerprint": setup.dataset.fingerprint,
            "train": setup.training.samples,
            "validation": setup.validation.samples if setup.validation else 0,
            "test": test["samples"] if test else 0,
            "skipped": list(setup.dataset.skipped),
        },
        "published": experiment.about.published.model_dump() if experiment.about.published else None,
        "expected": experiment.about.expected or None,
        "precision": experiment.precision,
        "compile": experiment.compile,
        "resumes": position.resumes,
    }


def _finished(run: Run, module: nn.Module | None) -> Result:
    """The result of a run that had come to its end before."""
    if module is None:
        module = weights.load(run.model)
    else:
        for change in run.read_experiment().changes:
            module, _ = changed(module, change)
        weights.load_into(module, run.model)
    return Result(module.eval(), run, run.read_summary())
