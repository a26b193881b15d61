"""Launch: from an experiment to a finished run: start or resume, train, evaluate once on the test images."""

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resode import atomic, quantities, weights
from resode.data import Dataset, hub
from resode.errors import InputError, IntegrityError, ResourceError
from resode.gradients import unwatched
from resode.streams import notebook_cell
from resode.training.loop import divergence
from resode.training.loop.callbacks import Callback
from resode.training.loop.restarts import allow_restarts, check_restart, ending_on_purpose
from resode.training.loop.session import Session
from resode.training.loop.step import Trainer
from resode.training.loop.summary import summary
from resode.training.process.allocator import keeping_freed_memory
from resode.training.process.distributed import World, process_group, restarted_by_torchrun
from resode.training.process.signals import StopRequest, listening
from resode.training.process.sync_batchnorm import revert_sync_batchnorm
from resode.training.recipe.experiment import Experiment
from resode.training.records import checkpoints
from resode.training.records.environment import environment
from resode.training.records.run import STOPPED, Run
from resode.training.setup.changes import changed
from resode.training.setup.loss import Loss
from resode.training.setup.network import model_of
from resode.training.setup.preparation import Setup, prepare


@dataclass(frozen=True)
class Result:
    """A finished run, or one that a callback stopped.

    Args:
        module: the trained network, in evaluation mode.
        run: the run directory.
        summary: the content of its summary.json.
        shown_in: the notebook's cell below which it is printed already.
    """

    module: nn.Module = field(repr=False)
    run: Run
    summary: dict[str, Any] = field(repr=False)
    shown_in: int | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        of = self.summary
        errors = [
            f"{split} error {of[split]['top1_error']:.2f} %" for split in ("test", "validation") if of[split]
        ]
        train = f"training accuracy {of['train']['accuracy']:.2f} %"
        stopped = f" of {of['epochs']}, stopped: {of['stopped']['reason']}" if self.stopped else ""
        return (
            f"Result: {', '.join(errors or [train])}; {self.epochs} epochs{stopped}, "
            f"{quantities.duration(of['seconds'])}\n{of['model']} on {of['data']['name']}, run {self.path}"
        )

    def _ipython_display_(self) -> None:
        """Display the result, as the value of a cell, unless that cell has printed it."""
        if self.shown_in is None or self.shown_in != notebook_cell():
            print(self)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def test_error(self) -> float | None:
        """Top-1 error on the test images in percent; None without test images."""
        return self.summary["test"]["top1_error"] if self.summary["test"] else None

    @property
    def validation_error(self) -> float | None:
        """Top-1 error on the images held out in percent, after the last epoch; None without such images."""
        return self.summary["validation"]["top1_error"] if self.summary["validation"] else None

    @property
    def stopped(self) -> str:
        """Why a callback ended the training early; empty if it trained for all epochs."""
        return self.summary["stopped"]["reason"] if "stopped" in self.summary else ""

    @property
    def epochs(self) -> int:
        """Epochs that were trained."""
        return int(self.summary["stopped"]["epoch"] if self.stopped else self.summary["epochs"])

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """The rows of metrics.csv, one for each epoch; None: not measured."""
        rows = csv.DictReader((self.path / "metrics.csv").read_text(encoding="utf-8").splitlines())
        return [{name: float(value) if value else None for name, value in row.items()} for row in rows]


def default_directory(experiment: Experiment) -> Path:
    """The run directory by default, such as `runs/he2016-resnet20-seed0`."""
    return Path("runs") / f"{experiment.name.replace('/', '-')}-seed{experiment.seed}"


@keeping_freed_memory()
@unwatched()  # the session checks, each epoch
def train(
    module: nn.Module | None,
    experiment: Experiment,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    callback: Callback | None = None,
    dataset: Dataset | None = None,
    loss: Loss | None = None,
) -> Result:
    """Train a network as the experiment says, in a run directory.

    Args:
        module: the network, (N, C, H, W) -> logits (N, classes), trained in place (with `refine` or `twist`
            the result holds another one); None builds `experiment.model`.
        experiment: `Experiment.from_recipe("he2016/resnet20")`.
        out: the run directory (default: `runs/<recipe>-seed<seed>`).
        resume: continue the run in that directory from its last checkpoint; start one if there is none.
        callback: is called on the way.
        dataset: the images, where the program holds them; default: read from the experiment's source.
        loss: (logits, labels) -> scalar, where the experiment says that it is the user's.

    Raises:
        InputError: settings, network, data or directory that do not fit together.
        DivergenceError: NaN or infinity; names step and layer, and saves nothing of it.
        Stopped: by a signal, after saving.
        ResourceError: disk or device do not suffice; the last checkpoint is whole.
    """
    module = getattr(module, "_orig_mod", module)  # from torch.compile; `compile: true` compiles here
    run = Run(Path(out) if out is not None else default_directory(experiment))
    with process_group(experiment.device) as world:
        if any(world.all_gather(restarted_by_torchrun())):
            check_restart(run, world)
            resume = True
        callback = callback if callback is not None and world.first else Callback()
        with ending_on_purpose(run, world), _held(run, resume, world) as resumed:
            if resumed:
                experiment = agreed(experiment, run, module)
                if world.broadcast(run.finished):
                    return _finished(run, module, callback)
                experiment = experiment.replace(init=None)  # the checkpoint replaces these weights
            setup = _prepared(experiment, module, callback, world, dataset, loss)
            session = Session(Trainer(setup, callback), run, callback)
            return _run(session, resumed)


def _run(session: Session, resumed: bool) -> Result:
    """Start or resume, and train to the end."""
    setup, run, callback = session.trainer.setup, session.run, session.callback
    for note in (*setup.notes, *_about_data(setup)):
        callback.message(note)
    record = run.recording_end() if setup.world.first else contextlib.nullcontext()
    with listening() as stop, _advising_resume(run), record:
        if resumed:
            _resume(session)
        else:
            _begin(session)
        allow_restarts(run, setup.world)
        callback.started(setup, session.trainer.position.epoch)
        session.train(stop)
        return _finish(session, stop)


# ---------------------------------------------------------------- the run directory


@contextlib.contextmanager
def _held(run: Run, resume: bool, world: World) -> Iterator[bool]:
    """Hold the directory for this run; gives whether there is a run to resume."""
    if run.path.exists() and not run.path.is_dir():
        raise InputError(f"{run.path}: is a file; choose another --out")
    with contextlib.ExitStack() as held:
        if world.first:
            fresh = not run.path.exists()
            held.enter_context(run.lock())
            held.enter_context(_removing_unused(run, fresh))
            run.clean()
            _check_directory(run, resume)
        yield world.broadcast(run.exists)


@contextlib.contextmanager
def _removing_unused(run: Run, fresh: bool) -> Iterator[None]:
    """Remove a directory that was made for a run which failed before it began."""
    try:
        yield
    except BaseException:
        if fresh and not run.exists:
            with contextlib.suppress(OSError):  # a directory with other files stays
                (run.path / ".lock").unlink()
                run.path.rmdir()
        raise


# What a run leaves behind that could not write its first checkpoint.
_LEFTOVERS = frozenset({".lock", ".restarts", "environment.json", "checkpoints"})


def _check_directory(run: Run, resume: bool) -> None:
    """Raise `InputError` where the directory holds something else than a run to resume."""
    if not run.exists:
        if any(p.name not in _LEFTOVERS for p in run.path.iterdir()):
            raise InputError(f"{run.path}: is not empty and holds no run; choose another --out")
        if any(int(p.name) for p in checkpoints.stored(run.checkpoints)):
            raise InputError(f"{run.path}: holds checkpoints without experiment.yaml; choose another --out")
        return
    if not resume:
        state = "a finished run" if run.finished else "an unfinished run"
        fix = "show it with `resode report`" if run.finished else "go on with --resume"
        raise InputError(f"{run.path}: holds {state}; {fix}, or choose another --out")


def agreed(experiment: Experiment, run: Run, module: nn.Module | None = None) -> Experiment:
    """The stored experiment of a run, if the one asked for does not contradict it.

    Args:
        experiment: asked for.
        run: that it is to resume.
        module: that the user gives in place of the experiment's model.

    Raises:
        InputError: a line for each setting that differs.
    """
    stored = run.read_experiment()
    asked, kept = experiment.model_dump(mode="json"), stored.model_dump(mode="json")
    if module is not None:
        model = model_of(module)
        asked["model"] = None if model is None else model.model_dump(mode="json")
    if hub.unpinned(kept["data"]["source"]) == asked["data"]["source"]:
        asked["data"]["source"] = kept["data"]["source"]  # the commit that the run began with
    free = ("about.", "device", "cuda_graph", "init.sha256", "init.optimizer_sha256", "plugins")
    differing = [
        f"{run.path}: was started with {path}={kept_value}, now it is {asked_value}; "
        "remove the change, or choose another --out"
        for path, asked_value, kept_value in _differences(asked, kept)
        if asked_value not in (None, "auto", "") and not path.startswith(free)
    ]
    if differing:
        raise InputError(*differing)
    chosen = {"device": experiment.device, "cuda_graph": experiment.cuda_graph}
    return stored.replace(**{key: value for key, value in chosen.items() if value != "auto"})


def _differences(asked: Any, kept: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted path, asked value, kept value) of each difference between nested mappings."""
    if isinstance(asked, dict) and isinstance(kept, dict):
        return [
            difference
            for key, value in asked.items()
            for difference in _differences(value, kept.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if asked == kept else [(path, asked, kept)]


# ---------------------------------------------------------------- start and resume


def _prepared(
    experiment: Experiment,
    module: nn.Module | None,
    callback: Callback,
    world: World,
    dataset: Dataset | None,
    loss: Loss | None,
) -> Setup:
    """The set-up: rank 0 resolves the experiment and fills the cache of data; the others use its results."""
    own = experiment.replace(device=world.device(experiment.device))
    if world.first:
        setup = prepare(own, module, callback.message, world, dataset, loss)
        world.broadcast(setup.experiment)
        return setup
    resolved = world.broadcast(own).replace(device=own.device)
    setup = prepare(resolved, module, callback.message, world, dataset, loss)
    torch.manual_seed(resolved.seed + (world.rank << 32))  # each rank has dropout masks of its own
    return setup


def _about_data(setup: Setup) -> Iterator[str]:
    """What the user should know of the data before training begins."""
    skipped = setup.data.dataset.skipped
    if skipped:
        yield f"{len(skipped)} images were skipped; summary.json lists them all"
        yield from (f"skipped: {line}" for line in skipped[:5])
    if setup.data.dataset.test is None:
        yield f"{setup.experiment.data.source} has no test images: there will be no test error"


@contextlib.contextmanager
def _advising_resume(run: Run) -> Iterator[None]:
    """Add to an error of a full disk how to resume."""
    try:
        yield
    except ResourceError as error:
        if run.exists:
            fix = f"the last checkpoint is whole: make room, then: resode train --resume --out {run.path}"
            raise ResourceError(*error.messages, fix) from error
        raise


def _begin(session: Session) -> None:
    """Write what a run starts with; the first checkpoint shows that the disk takes it."""
    run, trainer, setup = session.run, session.trainer, session.trainer.setup
    broken = divergence.not_finite(setup.module)
    if broken is not None:
        raise InputError(f"the initial weights are not finite: {broken}; give other weights")
    tensors = [*setup.module.state_dict().values()]
    state = sum(t.numel() * t.element_size() for t in tensors)
    if setup.world.first:
        run.require_space((setup.experiment.checkpoint.keep + 2) * 3 * state)
        atomic.write_json(run.path / "environment.json", environment(setup.device, setup.world.size))
    trainer.load_optimizer(setup.optimizer_state)
    session.save()
    if setup.world.first:
        run.write_experiment(setup.experiment)


def _resume(session: Session) -> None:
    """Return to the newest whole checkpoint."""
    run, callback, setup = session.run, session.callback, session.trainer.setup
    checkpoint, damaged = checkpoints.newest(run.checkpoints)
    for line in damaged:
        callback.message(f"{line}; an older checkpoint is used")
    if checkpoint is None:
        raise InputError(f"{run.path}: holds no checkpoint; start anew with another --out")
    _check_unedited(run, checkpoint)
    session.restore(checkpoint)
    position = session.trainer.position
    position.resumes += 1
    if setup.world.first:
        run.reopen()
        run.write_rows(session.rows)
        _note_environment(run, environment(setup.device, setup.world.size), callback)
    callback.message(
        f"resuming at iteration {position.iteration} (epoch {position.epoch + 1}, step {position.step} "
        f"of {session.trainer.steps})"
    )


# A description is no setting; a run may go on elsewhere, and by then its weights are its own.
_FREE_ON_RESUME = ("about", "device", "cuda_graph", "init")


def _check_unedited(run: Run, checkpoint: checkpoints.Checkpoint) -> None:
    """Raise `IntegrityError` where experiment.yaml was edited after the checkpoint was written."""
    recorded, now = checkpoint.state.get("experiment"), run.read_experiment().model_dump(mode="json")
    if recorded is None:  # of an earlier version
        return
    before = Experiment.model_validate(recorded).model_dump(mode="json")  # with defaults of keys added since
    edited = [
        f"{run.path / 'experiment.yaml'}: {path} was {kept}, now it is {edited}"
        for path, edited, kept in _differences(now, before)
        if path.partition(".")[0] not in _FREE_ON_RESUME
    ]
    if edited:
        raise IntegrityError(
            *edited,
            "a resumed run keeps its settings: undo the change, or start another run from these weights: "
            f"resode train {run.path} --init {run.path} --out NEW",
        )


def _note_environment(run: Run, now: dict[str, Any], callback: Callback) -> None:
    """Add the present environment to the record where it differs from the last."""
    path = run.path / "environment.json"
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        first = dict(now)
    last = {"processes": 1, **first.get("resumed", [first])[-1]}
    keys = [
        key
        for key in ("torch", "cpu", "cpu_capability", "kernels", "threads", "device", "gpu")
        if key in last  # earlier versions recorded fewer
    ]
    differing = [f"{key} {last.get(key)} -> {now[key]}" for key in keys if last.get(key) != now[key]]
    if differing:
        callback.message(
            f"the machine has changed ({', '.join(differing)}): the run goes on, but not in the same bits"
        )
    if (count := now["processes"]) != (earlier := last["processes"]):
        callback.message(
            f"{count} processes instead of {earlier}: order and augmentation of the images stay the same; "
            "rounding, dropout and the batches of BatchNorm do not (sync_batchnorm: whole batches)"
        )
    if differing or count != earlier:
        first.setdefault("resumed", []).append(now)
        atomic.write_json(path, first)


# ---------------------------------------------------------------- the end


def _finish(session: Session, stop: StopRequest) -> Result:
    """Evaluate once on the test images; write the final weights and the summary."""
    trainer, setup, run = session.trainer, session.trainer.setup, session.run
    module, loader = session.evaluated_module(), setup.test()
    test = session.evaluate(module, loader, stop) if loader is not None else None
    result = summary(session, test)
    origin: dict[str, Any] = {"epochs": trainer.position.epoch}
    if session.stopped:
        origin |= {"state": STOPPED, "iteration": trainer.position.iteration}
    if trainer.average is not None:
        origin["averaged"] = True
    if test is not None:
        origin |= {"test_error": round(test.top1_error, 6), "test_samples": test.samples}
    if setup.world.first:
        run.check_held()
        setup.save_weights(module, run.model, origin)
        run.write_summary(result)
        session.callback.finished(result)
    revert_sync_batchnorm(trainer.module)
    if module is not trainer.module:
        trainer.module.load_state_dict(module.state_dict())
    trained = weights.with_card(trainer.module.eval(), setup.card_of(origin))
    return Result(trained, run, result)


def _finished(run: Run, module: nn.Module | None, callback: Callback) -> Result:
    """The result of a run that was finished before."""
    result = run.read_summary()
    callback.message(f"{run.path}: this run is finished; nothing is left to do")
    callback.finished(result)
    if module is None:
        module = weights.load(run.model)
    else:
        for change in run.read_experiment().changes:
            module = changed(module, change).module
        weights.load_into(module, run.model)
        module = weights.with_card(module.eval(), weights.read_card(run.model))
    return Result(module.eval(), run, result)
