"""Definition of a study by a YAML file: arms x grid x seeds, a run each.

name: widths
recipe: short/resnet20                  # default recipe of the arms
set: {epochs: 5, data.validation: 5000} # overrides in every arm
arms:
plain: {}
wide: {set: {model.widths: [20, 38, 77]}}
grid: {optimizer.lr: [0.1, 0.2]}        # every combination, in every arm
seeds: [0, 1, 2]
choose: validation                      # best arm on held-out images; test images are not used
slurm: {partition: gpu, minutes: 240, gpus: 1, cpus: 8, memory: 32G}  # resources of a run on a cluster
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from resode.errors import InputError
from resode.training import Experiment
from resode.training.recipe import mistakes, reading
from resode.training.recipe.section import Section

Settings = dict[str, Any]


MAX_ARM_BYTES = 200  # longest name of an arm


class Arm(Section):
    """One of the ways to train that a study compares: a recipe and its overrides."""

    recipe: str | None = None
    """The recipe of this arm (default: that of the study)."""
    set: Settings = Field(default_factory=dict)
    """Overrides in this arm, dotted path -> value."""


class Slurm(Section):
    """Resources of each run on a SLURM cluster."""

    partition: str | None = None
    """Partition (`sbatch --partition`)."""
    account: str | None = None
    """Account that pays (`sbatch --account`)."""
    qos: str | None = None
    """Quality of service (`sbatch --qos`)."""
    minutes: Annotated[int, Field(gt=0)] = 240
    """Time limit; a run that needs longer saves before it and is requeued."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """Number of GPUs: 0 or 1, as a run is one process."""
    cpus: Annotated[int, Field(gt=0)] | None = None
    """Number of cores, and of threads."""
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]$")] | None = None
    """Memory, e.g. `16G`."""
    setup: list[str] = Field(default_factory=list)
    """Shell commands before the training (`module load cuda`)."""
    sbatch: dict[str, str | int] = Field(default_factory=dict)
    """Other options of sbatch by their long names (`constraint: a100`)."""


class Study(Section):
    """A study: arms, grid and seeds, with a run for each combination."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of the study (default: that of the file); its folder is `studies/NAME` by default."""
    about: str = ""
    """The question, in a sentence."""
    recipe: str | None = None
    """Default recipe of the arms."""
    set: Settings = Field(default_factory=dict)
    """Overrides in every arm, dotted path -> value."""
    arms: dict[str, Arm | None] = Field(min_length=1, default={"": Arm()})
    """Arms by name (default: a single one)."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted path -> values; every combination is an arm of its own."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Seeds of every arm, the same ones, so that arms can be paired."""
    choose: Literal["validation"] | None = None
    """`validation` selects the arm of the lowest mean error on held-out images; no run uses test images."""
    slurm: Slurm = Slurm()
    """Resources of each run on a cluster."""

    def jobs(self, plugins: Sequence[Path] = ()) -> tuple["Job", ...]:
        """All runs, ordered by seed, so that every arm has its first run before any has its second.

        Args:
            plugins: Python files that every run loads; this process has loaded them (`resode.plugins`).

        Raises:
            InputError: an arm without recipe, two arms of one name, or an invalid setting; a line for each.
        """
        arms = list(self._arms())
        mistakes = [
            f"{self.name}: two arms are called '{n}'" for n in _duplicates([name for name, *_ in arms])
        ]
        mistakes += [f"{self.name}: seed {seed} is listed twice" for seed in _duplicates(self.seeds)]
        for name, recipe, settings in arms:
            mistakes += self._mistakes(name, recipe, settings)
        jobs = tuple(
            Job(name, seed, recipe, {**settings, "seed": seed}, tuple(plugins))
            for seed in self.seeds
            for name, recipe, settings in arms
        )
        folders = [str(job.folder) for job in jobs if job.seed == self.seeds[0]]
        mistakes += [
            f"{self.name}: arm '{name[:40]}...' has {len(name.encode())} bytes, too many for a folder's name"
            for name, *_ in arms
            if len(name.encode()) > MAX_ARM_BYTES
        ]
        if not mistakes:
            mistakes += [
                f"{self.name}: two arms would share the folder {f}; rename one" for f in _duplicates(folders)
            ]
        if mistakes:
            raise InputError(*dict.fromkeys(mistakes))
        return jobs

    def to_yaml(self) -> str:
        """The study as a YAML file, without default values."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    def _arms(self) -> Iterator[tuple[str, str, Settings]]:
        short = {path: _shortest_suffix(path, self.grid) for path in self.grid}
        for name, arm in self.arms.items():
            chosen = arm or Arm()
            recipe = chosen.recipe or self.recipe or ""
            for values in itertools.product(*self.grid.values()):
                point = dict(zip(self.grid, values, strict=True))
                values_text = [f"{short[path]}={_value_text(value)}" for path, value in point.items()]
                settings = {**self.set, **chosen.set, **point}
                if self.choose is not None:
                    settings["evaluation.test"] = False
                yield ",".join(filter(None, [name, *values_text])) or Path(recipe).name, recipe, settings

    def _mistakes(self, name: str, recipe: str, settings: Settings) -> list[str]:
        if not recipe:
            return [f"{self.name}: arm '{name}' has no recipe; set `recipe` in the arm or in the study"]
        if "seed" in settings:
            return [f"{self.name}: arm '{name}' sets seed; list `seeds` instead"]
        try:
            experiment = Experiment.from_recipe(recipe, settings)
        except InputError as error:
            return [f"{self.name}: arm '{name}': {line}" for line in error.messages]
        if self.choose is not None and not experiment.data.validation:
            return [
                f"{self.name}: arm '{name}' has no held-out images, which `choose: validation` needs; set "
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
    plugins: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """Its folder, relative to that of the study."""
        return Path(re.sub(r"[^\w.,=+-]+|^\.+", "_", self.arm)) / f"seed{self.seed}"

    def experiment(self) -> Experiment:
        """The experiment that it trains."""
        return Experiment.from_recipe(self.recipe, self.settings)

    @property
    def arguments(self) -> list[str]:
        """The arguments of `resode train`, except --out."""
        options = [("--set", f"{path}={json.dumps(value)}") for path, value in self.settings.items()]
        options += [("--plugin", str(file)) for file in self.plugins]
        return [self.recipe, *itertools.chain.from_iterable(options)]


def read(file: Path) -> Study:
    """Read a study file.

    Raises:
        InputError: a line for each mistake.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; a study is a YAML file (`resode study --help` shows one)")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text ({error})") from None
    values = reading.parse_yaml(text, str(file))
    if reading.is_experiment(values):
        raise InputError(f"{file}: is one training, not a study; train it with `resode train {file}`")
    values.setdefault("name", re.sub(r"[^\w.-]+", "-", file.stem))
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise InputError(*(f"{file}: {line}" for line in mistakes.explain(error, Study))) from None


def _shortest_suffix(path: str, paths: Iterable[str]) -> str:
    """The shortest suffix of a dotted path that no other path has."""
    parts = path.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next(
        end for end in ends if end == path or sum(f".{other}".endswith(f".{end}") for other in paths) == 1
    )


def _value_text(value: Any) -> str:
    """Text of a value in the name of an arm."""
    if isinstance(value, Mapping):
        return str(value.get("name", "-".join(map(str, value.values()))))
    return "-".join(map(_value_text, value)) if isinstance(value, list) else str(value)


def _duplicates(values: Any) -> list[Any]:
    return [value for number, value in enumerate(values) if value in list(values)[:number]]
