"""Experiment: everything that decides a training run, as data.

A recipe (YAML) and overrides (`--set a.b=c`) make one validated, frozen value. All mistakes are reported at
once, a line each, with path and nearest valid name. A run stores its resolved experiment, which is enough to
rebuild it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from resode.errors import InputError
from resode.registry import IN_PYTHON
from resode.training.recipe import reading
from resode.training.recipe.data import Augment, Data, Sizing
from resode.training.recipe.mistakes import explain
from resode.training.recipe.network import Box, Drift, Model, Refinement, Smoothness, Twisting, WarmStart
from resode.training.recipe.optimizer import SGD, Average, Optimizer
from resode.training.recipe.schedule import Cosine, Schedule
from resode.training.recipe.section import BelowOne, FilePath, OneOrMany, Section

CROSS_ENTROPY = "cross_entropy"  # the loss that needs no function of the user's


class Published(Section):
    """The published result that a recipe reproduces."""

    top1_error: NonNegativeFloat
    """Top-1 test error in percent."""
    source: str
    """Where it is published."""
    measured: str = ""
    """How it was measured, where that is not after the last epoch, once over all test images."""


class About(Section):
    """A recipe's header: what it is, and what to expect."""

    summary: str = ""
    """One line about the recipe."""
    source: str = ""
    """The paper or code that it follows."""
    equation: str = ""
    """The equation of the network."""
    command: str = ""
    """The command that runs it."""
    cost: str = ""
    """How long it takes, and where."""
    published: Published | None = None
    """The published result (default: none)."""
    expected: str = ""
    """The result that resode gives."""
    differs: tuple[str, ...] = ()
    """Where the network, the data or the training departs from the source, a line each."""


class Evaluation(Section):
    """Evaluation on validation images during training, and on test images at its end."""

    every: PositiveInt = 1
    """Epochs from one evaluation to the next."""
    batch_size: PositiveInt = 500
    """Images a batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass: `fp32` or `bf16`."""
    test: bool = True
    """Whether test images are evaluated, once at the end; turn it off while settings are being chosen."""


class Checkpointing(Section):
    """When checkpoints are written."""

    every: PositiveInt = 1
    """Epochs from one checkpoint to the next."""
    minutes: PositiveFloat = 10.0
    """Minutes within an epoch after which another one is written, above 0."""
    keep: PositiveInt = 2
    """How many of the newest checkpoints stay."""


class Plugin(Section):
    """A Python file that the user named by --plugin. It is recorded; a recipe alone never runs it."""

    path: FilePath
    """The file."""
    sha256: str = ""
    """SHA-256 of the file when it was run."""


def _as_number(value: Any) -> Any:
    """Read a text like `1e9` as a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _of_controls(value: Any) -> Any:
    """Read a number as the bound on controls."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"controls": value} if is_number else value


class Experiment(Section):
    """All settings of a training run.

    experiment = Experiment.from_recipe("he2016/resnet20", {"epochs": 10, "optimizer.lr": 0.05})
    experiment.optimizer.lr, experiment.schedule.name
    """

    name: str
    """Name of the recipe."""
    about: About = About()
    """The recipe's header."""
    model: Model | None = None
    """The network; null where a module is given in Python."""
    data: Data = Data()
    """The data set."""
    augment: Augment = Augment()
    """Augmentation of training images."""
    optimizer: Optimizer = SGD()
    """The optimizer: `sgd`, `adamw` or `muon`, and its options."""
    schedule: Schedule = Cosine()
    """The learning rate over the training."""
    epochs: PositiveInt
    """Number of passes over the training images."""
    batch_size: PositiveInt = 128
    """Images a step, over all processes."""
    loss: str = CROSS_ENTROPY
    """What is minimised: `cross_entropy`, or the record of a function that was given in Python."""
    label_smoothing: BelowOne = 0.0
    """Weight of the uniform distribution in the targets, at least 0 and below 1."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the whole gradient, above which it is scaled down (default: no limit)."""
    average: Average | None = None
    """Exponential moving average of the parameters (default: none)."""
    smoothness: Smoothness | None = None
    """Penalty on controls that vary in time, for networks of dynamic blocks (default: none)."""
    box: Annotated[Box | None, BeforeValidator(_of_controls)] = None
    """Bounds on parameters, clamped after each step; a number bounds the controls (default: none)."""
    refine: Annotated[tuple[Refinement, ...], OneOrMany] = ()
    """Finer time grids during the training, in increasing order of `at`."""
    twist: Annotated[tuple[Twisting, ...], OneOrMany] = ()
    """Twists of convolutions during the training, in increasing order of `at`."""
    sizes: Annotated[tuple[Sizing, ...], OneOrMany] = ()
    """Smaller training images at first, in increasing order of `until`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initialisation, split, order of images and augmentation: 0 to 2^63 - 1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of training: `fp32`, `bf16` (autocast), or `auto`, whichever is faster on this machine."""
    compile: bool | Literal["auto"] = "auto"
    """Whether torch.compile is used; `auto` times both where the training is long enough to gain."""
    cuda_graph: bool | Literal["auto"] = "auto"
    """Whether a step on a single GPU is one CUDA graph; `auto`: if every module is torch's or resode's."""
    sync_batchnorm: bool = False
    """Whether batch normalisation takes statistics over all processes instead of each process's share."""
    device: str = "auto"
    """Where to train: `cpu`, `cuda`, `cuda:1`, or `auto`, a GPU if there is one."""
    evaluation: Evaluation = Evaluation()
    """Evaluation during the training and at its end."""
    checkpoint: Checkpointing = Checkpointing()
    """When checkpoints are written."""
    memory_budget: Annotated[ByteSize, Field(gt=0), BeforeValidator(_as_number)] | None = None
    """Memory of a step in bytes, or as `600MB`; chooses gradient methods that fit (default: no limit)."""
    gradients: Annotated[tuple[str | dict[str, Any], ...], OneOrMany] | None = None
    """Gradient method of each stage, in order; a run records here what memory_budget chose."""
    drift: Drift = Drift()
    """The check of reversible gradients."""
    init: WarmStart | None = None
    """Trained weights to start from (default: random ones)."""
    plugins: tuple[Plugin, ...] = ()
    """Python files that were loaded by --plugin."""

    @model_validator(mode="after")
    def _loss_is_known(self) -> Self:
        if self.loss != CROSS_ENTROPY and not self.loss.endswith(IN_PYTHON):
            raise ValueError(
                f"loss cannot be '{self.loss}'; '{CROSS_ENTROPY}' is known, others are given in Python"
            )
        return self

    @model_validator(mode="after")
    def _times_increase(self) -> Self:
        for key, time in (("refine", "at"), ("twist", "at"), ("sizes", "until")):
            times = [getattr(change, time) for change in getattr(self, key)]
            if times != sorted(set(times)):
                raise ValueError(f"the times `{time}` of {key} must increase")
        return self

    def __repr__(self) -> str:
        network = self.model.name if self.model else "a network of yours"
        return (
            f"Experiment({self.name}: {network} on {self.data.source}, epochs {self.epochs}, batch size "
            f"{self.batch_size}, {self.optimizer.name} lr {self.optimizer.lr:g}, {self.schedule.name}, seed "
            f"{self.seed}; to_yaml() has every setting)"
        )

    def __str__(self) -> str:
        return repr(self)

    @property
    def changes(self) -> list[Refinement | Twisting]:
        """Changes of the network during training, in order; refinement first where two coincide."""
        return sorted((*self.refine, *self.twist), key=lambda change: change.at)

    @classmethod
    def from_recipe(
        cls, recipe: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()
    ) -> "Experiment":
        """Read a recipe and apply overrides.

        Args:
            recipe: the name of a recipe of resode (`he2016/resnet20`), a YAML file, or a run directory.
            overrides: `{"optimizer.lr": 0.05}` or `["optimizer.lr=0.05"]`.

        Raises:
            InputError: with a line for every mistake.
        """
        pairs = (
            list(overrides.items()) if isinstance(overrides, Mapping) else reading.parse_overrides(overrides)
        )
        return cls.from_values(reading.read(str(recipe), pairs), str(recipe))

    @classmethod
    def from_values(cls, values: Mapping[str, Any], origin: str) -> "Experiment":
        """Validate plain values; error messages begin with `origin`.

        Raises:
            InputError: with a line for every mistake.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [*explain(error, cls), *(f"was made with --plugin {path}" for path in _plugins(values))]
            raise InputError(*(f"{origin}: {line}" for line in lines)) from None

    def to_yaml(self, without: Iterable[str] = ()) -> str:
        """Write the experiment as YAML, from which `from_recipe` reads an equal one.

        Args:
            without: top-level keys to omit.
        """
        values = self.model_dump(mode="json", exclude=set(without))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    def replace(self, **sections: Any) -> "Experiment":
        """A copy with some top-level keys replaced, validated again."""
        return Experiment.from_values({**self.model_dump(), **sections}, self.name)


def _plugins(values: Mapping[str, Any]) -> list[str]:
    """Paths of plug-ins in values that may be invalid."""
    named = values.get("plugins")
    plugins = named if isinstance(named, list | tuple) else ()
    return [str(plugin["path"]) for plugin in plugins if isinstance(plugin, Mapping) and "path" in plugin]
