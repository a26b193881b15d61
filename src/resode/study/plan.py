"""Plan: what a study file asks for: arms x grid x seeds, a run each.

name: widths
recipe: short/resnet20                  # of every arm that names no other
set: {epochs: 5, data.validation: 5000} # over every recipe
arms:
plain: {}
wide: {set: {model.widths: [20, 38, 77]}}
grid: {optimizer.lr: [0.1, 0.2]}        # every combination, of every arm
seeds: [0, 1, 2]
choose: validation                      # the best arm, on held-out images; test images stay unseen
slurm: {partition: gpu, minutes: 240, gpus: 1, cpus: 8, memory: 32G}  # of a run, on a cluster
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resode.errors import InputError
from resode.training import Experiment
from resode.training.recipe import reading

Settings = dict[str, Any]


LONGEST = 200  # bytes of the name of an arm


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Section):
    """One way to train: a recipe, and what is set over it."""

    recipe: str | None = None
    set: Settings = {}


class Slurm(_Section):
    """What a run asks a SLURM cluster for.

    Args:
        partition: as in `sbatch --partition`; so are account and qos.
        minutes: the time limit; a run that needs longer saves before it, and is queued again.
        gpus: 1 or none; a run is one process.
        cpus: cores, each with a thread.
        memory: e.g. `16G`.
        setup: shell commands before the training (`module load cuda`).
        sbatch: any other option of sbatch by its long name (`constraint: a100`).
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: Annotated[int, Field(gt=0)] = 240
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    cpus: Annotated[int, Field(gt=0)] | None = None
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]$")] | None = None
    setup: list[str] = []
    sbatch: dict[str, str | int] = {}


class Study(_Section):
    """All runs of a study.

    Args:
        name: of the study; its runs lie in `studies/NAME` by default.
        about: what is asked, in a sentence.
        recipe: of every arm that names none.
        set: dotted path -> value, over every recipe.
        arms: by name; left out, there is one.
        grid: dotted path -> values; every combination is an arm of its own.
        seeds: of every arm, so that arms can be paired.
        choose: `validation` names the arm of the least mean error on held-out images; no run of such a study
            looks at the test images.
        slurm: what each run asks a cluster for.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    about: str = ""
    recipe: str | None = None
    set: Settings = {}
    arms: Annotated[dict[str, Arm | None], Field(min_length=1)] = {"": Arm()}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    choose: Literal["validation"] | None = None
    slurm: Slurm = Slurm()

    def jobs(self) -> tuple["Job", ...]:
        """One a run, seeds last, so that every arm has its first before any has its second.

        Raises:
            InputError: an arm without a recipe, two arms of one name, a setting that is none (all of them).
        """
        arms = list(self._arms())
        mistakes = [f"{self.name}: two arms are called '{n}'" for n in _twice([name for name, *_ in arms])]
        mistakes += [f"{self.name}: the seed {seed} stands twice" for seed in _twice(self.seeds)]
        for name, recipe, settings in arms:
            mistakes += self._mistakes(name, recipe, settings)
        jobs = tuple(
            Job(name, seed, recipe, {**settings, "seed": seed})
            for seed in self.seeds
            for name, recipe, settings in arms
        )
        folders = [str(job.folder) for job in jobs if job.seed == self.seeds[0]]
        mistakes += [
            f"{self.name}: arm '{name[:40]}...' has {len(name.encode())} bytes, too many for a folder's name"
            for name, *_ in arms
            if len(name.encode()) > LONGEST
        ]
        if not mistakes:
            mistakes += [
                f"{self.name}: two arms would share the folder {f}; rename one" for f in _twice(folders)
            ]
        if mistakes:
            raise InputError(*dict.fromkeys(mistakes))
        return jobs

    def to_yaml(self) -> str:
        """The file again, with what it leaves out left out."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    def _arms(self) -> Iterator[tuple[str, str, Settings]]:
        short = {path: _ending(path, self.grid) for path in self.grid}
        for name, arm in self.arms.items():
            chosen = arm or Arm()
            recipe = chosen.recipe or self.recipe or ""
            for values in itertools.product(*self.grid.values()):
                point = dict(zip(self.grid, values, strict=True))
                told = [f"{short[path]}={_word(value)}" for path, value in point.items()]
                settings = {**self.set, **chosen.set, **point}
                if self.choose is not None:
                    settings["evaluation.test"] = False
                yield ",".join(filter(None, [name, *told])) or Path(recipe).name, recipe, settings

    def _mistakes(self, name: str, recipe: str, settings: Settings) -> list[str]:
        if not recipe:
            return [f"{self.name}: arm '{name}' has no recipe; give it one, or one to the study"]
        if "seed" in settings:
            return [f"{self.name}: arm '{name}' sets seed; list `seeds` instead"]
        try:
            experiment = Experiment.from_recipe(recipe, settings)
        except InputError as error:
            return [f"{self.name}: arm '{name}': {line}" for line in error.messages]
        if self.choose is not None and not experiment.data.validation:
            return [
                f"{self.name}: arm '{name}' holds no images out, which `choose: validation` needs; set "
                "data.validation, e.g. 5000"
            ]
        return []


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    arm: str
    seed: int
    recipe: str
    settings: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where it lies, within the study's folder."""
        return Path(re.sub(r"[^\w.,=+-]+|^\.+", "_", self.arm)) / f"seed{self.seed}"

    def experiment(self) -> Experiment:
        """What it trains."""
        return Experiment.from_recipe(self.recipe, self.settings)

    @property
    def words(self) -> list[str]:
        """The arguments of `resode train`, but for --out."""
        changes = [f"{path}={json.dumps(value)}" for path, value in self.settings.items()]
        return [self.recipe, *(word for change in changes for word in ("--set", change))]


def read(file: Path) -> Study:
    """A study file.

    Raises:
        InputError: every mistake, a line each.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; a study is a YAML file (`resode study --help` shows one)")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text ({error})") from None
    values = reading.parse_yaml(text, str(file))
    values.setdefault("name", re.sub(r"[^\w.-]+", "-", file.stem))
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise InputError(
            *(f"{file}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        ) from None


def _ending(path: str, paths: Iterable[str]) -> str:
    """The shortest end of a dotted path that no other path has."""
    parts = path.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next(
        end for end in ends if end == path or sum(f".{other}".endswith(f".{end}") for other in paths) == 1
    )


def _word(value: Any) -> str:
    """A value in the name of an arm."""
    if isinstance(value, Mapping):
        return str(value.get("name", "-".join(map(str, value.values()))))
    return "-".join(map(_word, value)) if isinstance(value, list) else str(value)


def _twice(values: Any) -> list[Any]:
    return [value for number, value in enumerate(values) if value in list(values)[:number]]
