"""Experiment: everything that decides a training run, as data.

A recipe (YAML) + `--set a.b=c` -> one validated, frozen value. All mistakes are reported at once, a line
each, with path and nearest valid name; a run stores its resolved experiment and is rebuilt from that alone.
"""

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from resode.data import sources
from resode.errors import InputError, nearest
from resode.models import models
from resode.operators.ties import Tie
from resode.operators.twist import Coordinates
from resode.training.recipe import reading

Fraction = Annotated[float, Field(ge=0, le=1)]


def _absolute(source: str) -> str:
    """A folder by its absolute path (a run may be resumed from elsewhere), a name or an address as it is."""
    path = Path(source).expanduser()
    return source if source in sources.names() or not path.is_dir() else str(path.resolve())


Location = Annotated[str, AfterValidator(_absolute)]
FilePath = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().resolve()))]


class Section(BaseModel):
    """A part of an experiment: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Published(Section):
    """The figure of the paper that a recipe reproduces (top-1 test error in percent)."""

    top1_error: NonNegativeFloat
    source: str


class About(Section):
    """What a recipe's header says: source, command, cost, published and expected result."""

    summary: str = ""
    source: str = ""
    equation: str = ""
    command: str = ""
    cost: str = ""
    published: Published | None = None
    expected: str = ""


class Model(Section):
    """A registered model and its options (`resode list models`)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options beside the name."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _registered(self) -> typing.Self:
        models.entry(self.name).check(self.options)
        return self


class Data(Section):
    """Where images come from and how the training part is divided.

    `validation` is held out of the training part, stratified: a count or a fraction. `mean` and `std`
    normalise each channel of pixels / 255; left out, they are those of the training images that are used.
    """

    source: Location = "cifar10"
    validation: NonNegativeInt | Annotated[float, Field(ge=0, lt=1)] = 0
    image_size: PositiveInt | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None
    fingerprint: str | None = None


class Augment(Section):
    """Augmentation of training images: `crop` pixels of padding, `cutout` side, `mixup` Beta(a, a).

    `flip: alternate` shows every image as it is and mirrored in turn, one epoch after the other.
    """

    crop: NonNegativeInt = 0
    padding: Literal["zeros", "reflect"] = "zeros"
    flip: bool | Literal["alternate"] = False
    cutout: NonNegativeInt = 0
    mixup: NonNegativeFloat = 0.0


class SGD(Section):
    """v <- momentum v + g + weight_decay theta; theta <- theta - lr v (Nesterov's form optional)."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0
    decay_norms: bool = True

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> typing.Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    name: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 1e-2
    decay_norms: bool = True


class Muon(Section):
    """Momentum with equal singular values for kernels of convolutions, SGD for all else (Jordan et al. 2024).

    W <- (1 - lr weight_decay) W - lr max(1, sqrt(o / i)) U V', where U S V' is the momentum as a matrix of
    o outputs and i inputs. The schedule is of both: all else has the rate `others.lr` where kernels have lr.
    """

    name: Literal["muon"] = "muon"
    lr: PositiveFloat = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 0.05
    others: SGD = SGD(nesterov=True, weight_decay=5e-4)


class Warmup(Section):
    """The first `epochs` run at lr times a factor: constant, or rising linearly from it to 1."""

    epochs: PositiveFloat
    factor: Fraction = 0.1
    shape: Literal["constant", "linear"] = "linear"


class Constant(Section):
    """The learning rate stays."""

    name: Literal["constant"] = "constant"
    warmup: Warmup | None = None


class MultiStep(Section):
    """The learning rate falls by `factor` at each milestone (fractions of the training)."""

    name: Literal["multistep"] = "multistep"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    warmup: Warmup | None = None

    @model_validator(mode="after")
    def _increasing(self) -> typing.Self:
        if any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError("milestones must increase")
        return self


class Cosine(Section):
    """Half a cosine from lr to `final` times lr (Loshchilov & Hutter 2017, arXiv 1608.03983)."""

    name: Literal["cosine"] = "cosine"
    final: Fraction = 0.0
    warmup: Warmup | None = None


class OneCycle(Section):
    """Linear from `start` lr up to lr at `peak` (a fraction of the training), then linear to `final` lr."""

    name: Literal["onecycle"] = "onecycle"
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.3
    start: Fraction = 0.1
    final: Fraction = 0.0
    warmup: None = None


class LinearExponential(Section):
    """(x / x0) exp(1 - x / x0): linear growth, then exponential decay, with lr at x = x0 = `peak`."""

    name: Literal["linear_exponential"] = "linear_exponential"
    peak: Annotated[float, Field(gt=0, le=1)] = 0.2
    warmup: None = None


Optimizer = Annotated[SGD | AdamW | Muon, Field(discriminator="name")]
Schedule = Annotated[
    Constant | MultiStep | Cosine | OneCycle | LinearExponential, Field(discriminator="name")
]


class Average(Section):
    """Exponential moving average of the parameters: a <- decay a + (1 - decay) theta after every step.

    The statistics of normalisations are not averaged but estimated anew, on `samples` training images.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    samples: PositiveInt = 5120


class Evaluation(Section):
    """Evaluation on the held-out images every `every` epochs, and once on the test images at the end.

    Without `test` they stay unseen: settings that are still to be chosen have no right to them.
    """

    every: PositiveInt = 1
    batch_size: PositiveInt = 500
    precision: Literal["fp32", "bf16"] = "fp32"
    test: bool = True


class Checkpointing(Section):
    """A checkpoint every `every` epochs and every `minutes` within one; the newest `keep` stay."""

    every: PositiveInt = 1
    minutes: PositiveFloat = 10.0
    keep: PositiveInt = 2


class Smoothness(Section):
    """a sum_j |theta_{j+1} - theta_j|_1 + b/2 sum_j ||theta_{j+1} - theta_j||^2 / (tau_{j+1} - tau_j).

    Added to the loss, over the controls of all dynamic blocks (Haber & Ruthotto 2017, arXiv:1705.03341).
    """

    total_variation: NonNegativeFloat = 0.0
    dirichlet: NonNegativeFloat = 0.0


def _number(value: Any) -> Any:
    """The number that a text like `1e9` is; any other value as it is."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _listed(value: Any) -> Any:
    """A list of one where one is given."""
    return [value] if isinstance(value, int | str | Mapping) else value


class Refinement(Section):
    """Finer time grids from a fraction `at` of the training on: multilevel training.

    theta(t) and the optimizer's state are carried over; statistics are estimated anew.
    """

    at: Annotated[float, Field(gt=0, lt=1)]
    states: Literal["double", "keep"] = "double"
    controls: Literal["double", "keep"] = "double"


class Twisting(Section):
    """Convolutions that depend on the place from a fraction `at` of the training on (`resode.twist`).

    The output does not change at first, and the optimizer's state is carried over. `where` lists stages and
    names; left out, every 3x3 convolution is twisted.
    """

    at: Annotated[float, Field(gt=0, lt=1)]
    where: Annotated[tuple[int | str, ...], BeforeValidator(_listed)] = ()
    tie: Tie = "conformal"
    degree: PositiveInt = 1
    coordinates: Coordinates = "centred"

    def options(self) -> dict[str, Any]:
        """What `resode.twist` is asked."""
        return {"tie": self.tie, "degree": self.degree, "coordinates": self.coordinates}


class Sizing(Section):
    """Images of side `size` until a fraction of the training; then the next size, and at last whole ones."""

    until: Annotated[float, Field(gt=0, lt=1)]
    size: PositiveInt


class Drift(Section):
    """What happens where the recovered states of a reversible gradient drift away from the first ones.

    Each epoch the largest relative error of a recovered state is measured on one batch (metrics.csv,
    `reconstruction_error`). Beyond `limit` the run stops, or falls back to checkpointed gradients.
    """

    limit: PositiveFloat = 1e-2
    beyond: Literal["fall_back", "stop"] = "fall_back"


class Initial(Section):
    """The weights that training starts from, by path and content.

    `new_head` keeps the network's own last layer, where the data has another number of classes. `optimizer`
    takes the optimizer's state from the file beside it, as `resode regrid` writes it.
    """

    path: FilePath
    sha256: str = ""
    new_head: bool = False
    optimizer: bool = False
    optimizer_sha256: str = ""


class Plugin(Section):
    """A Python file that the user named by --plugin; it is recorded, and never run by itself."""

    path: FilePath
    sha256: str = ""


class Experiment(Section):
    """All that decides a run. `Experiment.from_recipe("he2016/resnet20", {"epochs": 10})` builds one.

    Of networks of dynamic blocks: `smoothness` in time is added to the loss, `box` bounds every parameter of
    the controls after each optimizer step, `refine` doubles the time grids on the way. Any network can be
    twisted on the way (`twist`), and learn from smaller images at first (`sizes`). `memory_budget` (bytes, or
    600MB) chooses the gradient method of each part so that a step fits; `gradients` is what it chose, in the
    order of the parts. Where one process trains on a GPU, a step is one CUDA graph (`cuda_graph`; auto: where
    no part of the network is your own). Where several train, `sync_batchnorm` normalises a batch as a whole,
    not each part of it.
    """

    name: str
    about: About = About()
    model: Model | None = None
    data: Data = Data()
    augment: Augment = Augment()
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    epochs: PositiveInt
    batch_size: PositiveInt = 128
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: PositiveFloat | None = None
    average: Average | None = None
    smoothness: Smoothness | None = None
    box: PositiveFloat | None = None
    refine: Annotated[tuple[Refinement, ...], BeforeValidator(_listed)] = ()
    twist: Annotated[tuple[Twisting, ...], BeforeValidator(_listed)] = ()
    sizes: Annotated[tuple[Sizing, ...], BeforeValidator(_listed)] = ()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    cuda_graph: bool | Literal["auto"] = "auto"
    sync_batchnorm: bool = False
    device: str = "auto"
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = Checkpointing()
    memory_budget: Annotated[ByteSize, Field(gt=0), BeforeValidator(_number)] | None = None
    gradients: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_listed)] | None = None
    drift: Drift = Drift()
    init: Initial | None = None
    plugins: tuple[Plugin, ...] = ()

    @model_validator(mode="after")
    def _changes_in_order(self) -> typing.Self:
        for key in ("refine", "twist"):
            times = [change.at for change in getattr(self, key)]
            if times != sorted(set(times)):
                raise ValueError(f"the times `at` of {key} must increase")
        return self

    @model_validator(mode="after")
    def _sizes_in_order(self) -> typing.Self:
        times = [part.until for part in self.sizes]
        if times != sorted(set(times)):
            raise ValueError("the times `until` of sizes must increase")
        return self

    @property
    def changes(self) -> list[Refinement | Twisting]:
        """What changes the network on the way, in order; at the same time grids first."""
        return sorted((*self.refine, *self.twist), key=lambda change: change.at)

    @classmethod
    def from_recipe(
        cls, recipe: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()
    ) -> "Experiment":
        """Read a recipe: a shipped name, a YAML file, or a run directory (its resolved experiment).

        Args:
            recipe: `he2016/resnet20`, `my.yaml` or `runs/my-run`.
            overrides: `{"optimizer.lr": 0.05}` or `["optimizer.lr=0.05"]`.

        Raises:
            InputError: every mistake, a line each.
        """
        pairs = (
            list(overrides.items()) if isinstance(overrides, Mapping) else reading.parse_overrides(overrides)
        )
        return cls.from_values(reading.read(str(recipe), pairs), str(recipe))

    @classmethod
    def from_values(cls, values: Mapping[str, Any], origin: str) -> "Experiment":
        """Validate plain values; `origin` is how errors call them."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [*_explain(error), *(f"was made with --plugin {path}" for path in _plugins(values))]
            raise InputError(*(f"{origin}: {line}" for line in lines)) from None

    def to_yaml(self, without: Iterable[str] = ()) -> str:
        """The experiment as YAML; unless a section is left out, `from_recipe` reads back the same value."""
        values = self.model_dump(mode="json", exclude=set(without))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    def replace(self, **sections: Any) -> "Experiment":
        """A copy with some fields exchanged, validated again."""
        return Experiment.from_values({**self.model_dump(), **sections}, self.name)


# ---------------------------------------------------------------- mistakes


def _plugins(values: Mapping[str, Any]) -> list[str]:
    """The plug-ins that values name, valid or not."""
    named = values.get("plugins") or ()
    return [str(plugin["path"]) for plugin in named if isinstance(plugin, Mapping) and "path" in plugin]


def _explain(error: ValidationError) -> list[str]:
    """One line a mistake: path, what is wrong, nearest valid name."""
    lines: dict[str, None] = {}
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        fields, path = _known_fields(location)
        where = ".".join(path) or "the experiment"
        if item["type"] == "extra_forbidden":
            lines[f"unknown key '{where}'{nearest(path[-1], fields)} (known here: {', '.join(fields)})"] = (
                None
            )
        elif item["type"] == "missing":
            lines[f"'{where}' is missing"] = None
        elif item["type"] in ("union_tag_invalid", "literal_error"):
            given = str(item["input"].get("name") if isinstance(item["input"], dict) else item["input"])
            choices = item["ctx"].get("expected_tags") or item["ctx"].get("expected", "")
            words = [w.strip(" '") for w in choices.replace(" or ", ", ").split(",")]
            lines[f"'{where}' cannot be '{given}'{nearest(given, words)} (one of: {', '.join(words)})"] = None
        elif item["type"] == "union_tag_not_found":
            lines[f"'{where}' needs a name"] = None
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(item["input"], dict | BaseModel) else f" (given: {item['input']!r})"
            lines[f"'{where}': {message[0].lower()}{message[1:]}{shown}"] = None
    return list(lines)


def _known_fields(location: list[str]) -> tuple[list[str], list[str]]:
    """The keys known where a mistake lies, and its path without pydantic's names of union members."""
    sections: list[type[BaseModel]] = [Experiment]
    path: list[str] = []
    for part in location:
        owners = [s for s in sections if part in s.model_fields]
        variants = [
            s for s in sections if "name" in s.model_fields and s.model_fields["name"].default == part
        ]
        if owners:
            path.append(part)
            sections = [m for s in owners for m in _models(s.model_fields[part].annotation)]
        elif variants:
            sections = variants
        elif part.isdigit():  # an item of a list
            path.append(part)
        elif sections:  # a key that no section here knows
            path.append(part)
            break
    return sorted({name for s in sections for name in s.model_fields}), path


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation admits."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models(part)]
