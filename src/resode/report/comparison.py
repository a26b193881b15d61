"""Comparison of arms (runs that differ only in their seed): errors of the last epoch, and costs.

Remarks name every difference in protocol (data, split, epochs, augmentation, ...).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from resode import cost, weights
from resode.blocks import adaptive_solvers
from resode.errors import InputError, ResodeError
from resode.memory import Shape
from resode.report.statistics import Difference, Mean, difference_of, mean_of
from resode.training.records.reader import PublishedError, RunRecord, read

# Settings that may differ between the runs of an arm: they change neither the network nor what it learns, or
# follow from the seed (the mean over the training images depends on the split).
IGNORED = ("seed", "device", "checkpoint", "about", "name", "plugins", "compile")
IGNORED_DATA = ("mean", "std", "fingerprint")
NAMED = 3  # the most settings in the name of an arm; with more it has that of its folder
# Settings that must agree for a fair comparison of errors: label -> path in the experiment.
PROTOCOL = {
    "data": ("data", "source"),
    "validation split": ("data", "validation"),
    "epochs": ("epochs",),
    "batch size": ("batch_size",),
    "augmentation": ("augment",),
    "image size": ("data", "image_size"),
    "image sizes": ("sizes",),
    "loss": ("loss",),
    "optimizer": ("optimizer",),
    "schedule": ("schedule",),
    "gradient clipping": ("clip_norm",),
    "label smoothing": ("label_smoothing",),
    "weight averaging": ("average",),
    "precision": ("precision",),
    "initial weights": ("init",),
    "test precision": ("evaluation", "precision"),
}


@dataclass(frozen=True)
class Group:
    """An arm: runs of one experiment with different seeds.

    Args:
        name: name of the arm.
        runs: the runs by seed.
        repeated: runs that repeat one of `runs` (same experiment, same seed), which are excluded.
    """

    name: str
    runs: Mapping[int, RunRecord]
    repeated: tuple[RunRecord, ...] = ()

    @property
    def finished(self) -> dict[int, RunRecord]:
        """The finished runs by seed."""
        return {seed: run for seed, run in self.runs.items() if run.finished}

    def errors(self, split: str) -> dict[int, float]:
        """Top-1 errors in percent by seed, on the `test` or `validation` images."""
        found = {seed: getattr(run.result, split) for seed, run in self.finished.items()}
        return {seed: scores.top1_error for seed, scores in found.items() if scores is not None}

    def median_of(self, key: str) -> float | None:
        """The median of a number of the summaries over the finished runs."""
        values = [v for run in self.finished.values() if (v := getattr(run.result, key)) is not None]
        return median(values) if values else None


@dataclass(frozen=True)
class Row:
    """The numbers of an arm: errors in percent, the difference to the first arm in points.

    `published_as` says how the published error was measured if not after the last epoch on all images.
    """

    name: str
    seeds: tuple[int, ...]
    unfinished: int
    test: Mean | None
    validation: Mean | None
    difference: Difference | None
    published: float | None
    published_as: str
    parameters: int | None
    multiply_adds: int | None
    evaluations: float | None
    seconds: float | None
    peak_memory_bytes: int | None

    def on(self, split: str) -> Mean | None:
        """The mean error on the images of `test` or `validation`."""
        return self.test if split == "test" else self.validation


@dataclass(frozen=True)
class Comparison:
    """Rows, and remarks on what limits their comparison.

    Args:
        rows: the numbers of each arm.
        protocol: what differs in the protocol, as (setting, line about its values).
        others: further remarks.
        split: whose errors are compared.
    """

    rows: tuple[Row, ...]
    protocol: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    split: str

    @property
    def remarks(self) -> tuple[str, ...]:
        """All remarks."""
        return (*(line for _, line in self.protocol), *self.others)

    @property
    def folded(self) -> bool:
        """Whether `brief` names the differences of protocol without their values."""
        return len(self.protocol) > 2

    @property
    def brief(self) -> tuple[str, ...]:
        """All remarks, many differences of protocol folded into one."""
        if not self.folded:
            return self.remarks
        settings = ", ".join(dict.fromkeys(setting for setting, _ in self.protocol))
        return (f"protocols differ in {settings}", *self.others)


def compare(groups: Sequence[Group], split: str = "test") -> Comparison:
    """Compare arms with the first one that has a finished run.

    Args:
        groups: at least one arm.
        split: the errors whose differences are computed, `test` or `validation`.

    Raises:
        InputError: no arm has a finished run.
    """
    if not any(group.finished for group in groups):
        raise InputError("none of these runs is finished; resume them with `resode train --resume --out RUN`")
    groups = sorted(groups, key=lambda group: not group.finished)
    base = groups[0].errors(split)
    rows = []
    for group in groups:
        test, validation = group.errors("test"), group.errors("validation")
        rows.append(
            Row(
                name=group.name,
                seeds=tuple(sorted(group.finished)),
                unfinished=len(group.runs) - len(group.finished),
                test=mean_of(list(test.values())) if test else None,
                validation=mean_of(list(validation.values())) if validation else None,
                difference=None if group is groups[0] else difference_of(base, group.errors(split)),
                published=None if (found := _published(group)) is None else found.top1_error,
                published_as="" if found is None else found.measured,
                parameters=_whole(group.median_of("parameters")),
                multiply_adds=_multiply_adds(group),
                evaluations=_evaluations(group),
                seconds=group.median_of("seconds"),
                peak_memory_bytes=_whole(group.median_of("peak_memory_bytes")),
            )
        )
    others = (*_excluded(groups), *_missing(groups, rows, split), *_uncounted(groups))
    return Comparison(tuple(rows), tuple(_protocol(groups)), others, split)


def grouped(paths: Iterable[Path]) -> list[Group]:
    """Group runs into arms: the same experiment except for the seed, in the order of `paths`.

    A folder stands for all runs below it. Of runs with the same seed an arm keeps the first finished one.

    Raises:
        InputError: a path holds no run.
    """
    found: dict[str, dict[int, RunRecord]] = {}
    repeated: dict[str, list[RunRecord]] = {}
    arms: dict[str, str] = {}
    for path in paths:
        of_study = _arms(path)
        places = {folder: place for place, folder in enumerate(of_study)}  # arms in the order of their file
        inside = _runs_in(path)
        for folder in sorted(inside, key=lambda f: places.get(str(f.relative_to(path)), len(places))):
            run = read(folder)
            seed = _seed(run)
            arm = of_study.get(str(folder.relative_to(path))) if of_study else None
            identity = _identity(run) if arm is None else f"{path}: {arm}"
            if arm is not None:
                arms[identity] = arm
            members = found.setdefault(identity, {})
            if (other := members.get(seed)) is not None:
                if other.path.resolve() == run.path.resolve():
                    continue
                run, other = (other, run) if other.finished or not run.finished else (run, other)
                repeated.setdefault(identity, []).append(other)
            members[seed] = run
    ordered = {key: dict(sorted(members.items())) for key, members in found.items()}
    alone = [key for key in found if key not in arms]
    names = arms | dict(zip(alone, _names([ordered[key] for key in alone]), strict=True))
    return _distinct([Group(names[key], ordered[key], tuple(repeated.get(key, ()))) for key in found])


def _seed(run: RunRecord) -> int:
    return int(run.setting("seed") or run.result.seed or 0)


def with_base(groups: Sequence[Group], name: str) -> list[Group]:
    """The arms, first the one that others are compared with.

    Args:
        groups: the arms.
        name: of the base, or a part of it that no other name has.

    Raises:
        InputError: no arm or several of that name, or none of its runs is finished.
    """
    chosen = [g for g in groups if g.name == name] or [g for g in groups if name in g.name]
    if len(chosen) != 1:
        names = ", ".join(f"'{group.name}'" for group in (chosen or groups))
        raise InputError(f"base {name}: {'more than one arm' if chosen else 'no arm'} of that name ({names})")
    if not chosen[0].finished:
        raise InputError(f"base {name}: none of its runs is finished")
    return [chosen[0], *(group for group in groups if group is not chosen[0])]


def _distinct(groups: Sequence[Group]) -> list[Group]:
    """Arms with unique names: one with the name of an earlier one also gets its folder."""
    seen: set[str] = set()
    made = []
    for group in groups:
        folder = next(iter(group.runs.values())).path
        name = group.name if group.name not in seen else f"{group.name} [{folder.parent}]"
        name = name if name not in seen else f"{group.name} [{folder}]"
        seen.add(name)
        made.append(replace(group, name=name))
    return made


def _arms(path: Path) -> dict[str, str]:
    """Run folder -> arm, in the folder of a study; empty for any other folder."""
    try:
        found = json.loads((path / "arms.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _runs_in(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: no such directory; name one that `resode train` wrote")
    if not path.is_dir():
        raise InputError(f"{path}: a file, which does not record how it was trained; name its run directory")
    if (path / "experiment.yaml").is_file():
        return [path]
    inside = sorted(found.parent for found in path.rglob("experiment.yaml"))
    if not inside:
        raise InputError(f"{path}: holds no run; name one that `resode train` wrote")
    return inside


def _identity(run: RunRecord) -> str:
    return json.dumps(_kept(run), sort_keys=True, default=str)


def _kept(run: RunRecord) -> dict[str, Any]:
    """The experiment of a run without the ignored settings."""
    kept = {key: value for key, value in run.experiment.items() if key not in IGNORED}
    if isinstance(data := kept.get("data"), Mapping):
        kept["data"] = {key: value for key, value in data.items() if key not in IGNORED_DATA}
    return kept


def _names(groups: Sequence[Mapping[int, RunRecord]]) -> list[str]:
    """Names of arms: by their recipe; those of the same recipe also by the settings in which they differ."""
    first = [next(iter(members.values())) for members in groups]
    names = [str(run.setting("name") or run.path.name) for run in first]
    made = []
    for name, run in zip(names, first, strict=True):
        alike = [other for other, other_name in zip(first, names, strict=True) if other_name == name]
        flat = [_flat(_kept(other)) for other in alike]
        differing = sorted({key for one in flat for key in one if any(o.get(key) != one[key] for o in flat)})
        own = _flat(_kept(run))
        named = [f"{key}={own[key]}" for key in differing if key in own]
        settings = ", ".join(named) if len(differing) <= NAMED else run.path.name
        made.append(f"{name} ({settings})" if settings else name)
    return made


def _flat(values: Any, path: str = "") -> dict[str, str]:
    if isinstance(values, Mapping):
        return {
            key: text
            for name, value in values.items()
            for key, text in _flat(value, f"{path}.{name}" if path else str(name)).items()
        }
    return {path: str(values)}


def _protocol(groups: Sequence[Group]) -> Iterable[tuple[str, str]]:
    """Differences in protocol and data: (setting, line about its values)."""
    runs = [(group.name, run) for group in groups for run in group.finished.values()]
    for label, path in PROTOCOL.items():
        flat = [(name, _setting(run, path)) for name, run in runs]
        for key in dict.fromkeys(key for _, values in flat for key in values):
            by_value: dict[str, list[str]] = {}
            for name, values in flat:
                by_value.setdefault(values.get(key, "none"), []).append(name)
            if len(by_value) > 1:
                listed = "; ".join(f"{value} ({_few(names)})" for value, names in by_value.items())
                yield label, f"protocols differ in {f'{label}, {key}' if key else label}: {listed}"
    data = PROTOCOL["data"]
    hashes = {run.result.data.fingerprint for _, run in runs if run.result.data.fingerprint}
    if len(hashes) > 1 and all(_setting(run, data) == _setting(runs[0][1], data) for _, run in runs):
        yield "data", "protocols differ in data: the same name, but different images"


def _excluded(groups: Sequence[Group]) -> Iterable[str]:
    """Excluded runs: those not finished, and repetitions."""
    for group in groups:
        for run in group.repeated:
            kept = next(iter(other for other in group.runs.values() if _seed(other) == _seed(run)))
            yield f"{run.path}: excluded, the same experiment with the same seed {_seed(run)} as {kept.path}"
        if waiting := len(group.runs) - len(group.finished):
            ends = dict.fromkeys(run.end.status for run in group.runs.values() if run.end is not None)
            why = f" ({', '.join(ends)})" if ends else ""
            yield f"{group.name}: {waiting} of {len(group.runs)} runs not finished{why}, excluded"


def _uncounted(groups: Sequence[Group]) -> Iterable[str]:
    """Arms whose multiply-adds depend on the images."""
    for group in groups:
        network = _network(group)
        if network is not None and (solvers := adaptive_solvers(network[0])):
            yield (
                f"{group.name}: multiply-adds depend on the images ({solvers}); evaluations are those of a "
                "training step of the last epoch"
            )


def _missing(groups: Sequence[Group], rows: Sequence[Row], split: str) -> Iterable[str]:
    """Missing errors and differences, and times from different machines."""
    for group, row in zip(groups, rows, strict=True):
        of, known = len(group.finished), len(group.errors(split))
        if known < of:
            yield f"{group.name}: {of - known} of {of} finished runs have no {split} error"
        elif of and row is not rows[0] and row.difference is None and groups[0].errors(split):
            yield f"{group.name}: shares no seed with {groups[0].name}, so no difference is shown"
    machines: dict[str, list[str]] = {}
    for group in groups:
        for run in group.finished.values():
            machines.setdefault(machine(run), []).append(group.name)
    if len(machines) > 1:
        listed = "; ".join(f"{name or 'unknown'} ({_few(names)})" for name, names in machines.items())
        yield f"times and memory come from different machines: {listed}"


def machine(run: RunRecord) -> str:
    """The machine of a run: `A processor, 2 threads`."""
    environment = run.environment
    threads, processes = environment.get("threads"), environment.get("processes")
    words = [str(environment.get("gpu") or environment.get("cpu") or "")]
    words += [f"{threads} thread{'' if threads == 1 else 's'}"] if threads else []
    words += [f"{processes} processes"] if processes not in (None, 1) else []
    return ", ".join(filter(None, words))


def _setting(run: RunRecord, path: tuple[str, ...]) -> dict[str, str]:
    """A setting of the protocol, flattened to key -> value; empty if it is not set."""
    value: Any = run.experiment
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return {} if value is None else _flat(value)


def _few(names: Sequence[str]) -> str:
    """The distinct names, at most three of them."""
    arms = list(dict.fromkeys(names))
    return ", ".join(arms[:3]) + (f" and {len(arms) - 3} more" if len(arms) > 3 else "")


def _published(group: Group) -> PublishedError | None:
    return next(iter(group.runs.values())).result.published


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _multiply_adds(group: Group) -> int | None:
    """Multiply-adds for one image of the trained network.

    None for a network of the user's own, and where an adaptive solver makes them depend on the images.
    """
    network = _network(group)
    if network is None or adaptive_solvers(network[0]):
        return None
    try:
        return cost.multiply_adds(*network)
    except (ResodeError, RuntimeError, ValueError, TypeError):  # a forward that needs values
        return None


def _network(group: Group) -> tuple[nn.Module, Shape] | None:
    """The trained network, without values, and (C, H, W) of its images; None for one of the user's own."""
    run = next(iter(group.finished.values()), None)
    if run is None:
        return None
    try:
        card = weights.read_card(run.path / "model.safetensors")
        if card.specification is None:
            return None
        with torch.device("meta"):
            return card.specification.build(), (card.preprocessing.channels, *card.preprocessing.size)
    except (ResodeError, RuntimeError, ValueError, TypeError):  # no weights
        return None


def _evaluations(group: Group) -> float | None:
    """Evaluations of fields in a training step of the last epoch (median over runs)."""
    found = [run.epochs[-1].function_evaluations for run in group.finished.values() if run.epochs]
    known = [value for value in found if value is not None]
    return median(known) if known else None
