"""Settings of the network: the model, its initial weights, and what changes or bounds it during training."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from resode import catalogue
from resode.operators.ties import Coordinates, Tie
from resode.training.recipe.section import FilePath, Inside, OneOrMany, Section


class Model(Section):
    """A registered model and its options (`resode list models`)."""

    model_config = ConfigDict(extra="allow")

    name: str
    """Name of a registered model, such as `he_resnet20`; its options are further keys."""

    @property
    def options(self) -> dict[str, Any]:
        """The options, without the name."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _plain(self) -> Self:
        _check_plain(self.options)
        return self

    @model_validator(mode="after")
    def _registered(self) -> Self:
        known = catalogue.models().get(self.name)
        if known is not None and self.options.keys() <= set(known.options):
            return self  # without PyTorch
        from resode.models import models

        models.entry(self.name).check(self.options)
        return self


def _check_plain(value: Any, path: str = "") -> None:
    """Raise `ValueError` for what a file cannot hold: a class, a function, or an object made in Python."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            _check_plain(inner, f"{path}.{place}")
    elif not isinstance(value, str | int | float | None):
        name = getattr(value, "__name__", None)
        kind = path.rpartition(".")[2]
        if name is not None and kind in _REGISTERED:
            raise ValueError(
                f"{path}: the {kind} {name} has no name for files: put @{_REGISTERED[kind]}.register('NAME') "
                "on its definition, load that by --plugin FILE, and give 'NAME'"
            )
        what = name or f"a value of type {type(value).__name__}"
        raise ValueError(f"{path}: {what} is no plain data; give names, numbers, lists and mappings")


_REGISTERED = {
    "field": "fields", "integrator": "integrators", "gradient": "gradients", "norm": "norms",
    "activation": "activations", "connector": "connectors",
}  # fmt: skip


class WarmStart(Section):
    """Trained weights to start from."""

    path: FilePath
    """The .safetensors file of the weights."""
    sha256: str = ""
    """SHA-256 of the weights; a run records it and refuses other weights."""
    new_head: bool = False
    """Whether the last layer is initialised afresh, for data with other classes."""
    classes: Literal["by-name", "by-position"] | dict[str, str] = "by-name"
    """How classes of the data match those of the weights: `by-name`, `by-position`, or a mapping of names."""
    optimizer: bool = False
    """Whether the optimizer's state is read from the file beside the weights that `resode regrid` writes."""
    optimizer_sha256: str = ""
    """SHA-256 of the optimizer's state; a run records it and refuses another state."""


class Smoothness(Section):
    """A penalty on controls theta(t) that vary in time, added to the loss (dynamic blocks only).

    a sum_j |theta_{j+1} - theta_j|_1 + b/2 sum_j ||theta_{j+1} - theta_j||^2 / (tau_{j+1} - tau_j)
    over the control nodes tau_j of all dynamic blocks (Haber & Ruthotto 2017, arXiv:1705.03341).
    """

    total_variation: NonNegativeFloat = 0.0
    """The factor a, of the total variation in time."""
    dirichlet: NonNegativeFloat = 0.0
    """The factor b, of the Dirichlet energy in time."""
    epsilon: NonNegativeFloat = 0.0
    """Smooths |d| in the total variation to h sqrt((d/h)^2 + epsilon), h the interval (Meganet.m: 1e-3)."""


class Box(Section):
    """Bounds on parameters, to which they are clamped after each step: |p| <= bound, one for each kind.

    A kind without a bound is free, as are the biases of norms and of linear layers, the bias of K^T in a
    parabolic field, and twists.
    """

    controls: PositiveFloat | None = None
    """Bound on every parameter of theta(t), in dynamic blocks."""
    convolutions: PositiveFloat | None = None
    """Bound on weights and biases of convolutions, in the whole network."""
    norms: PositiveFloat | None = None
    """Bound on the scales of normalisations, in the whole network."""
    linear: PositiveFloat | None = None
    """Bound on the weights of linear layers."""


class Refinement(Section):
    """Finer time grids from a point of the training on: multilevel training (dynamic blocks only).

    theta(t) and the optimizer's state are carried over; statistics are estimated anew.
    """

    at: Inside
    """Fraction of the training at which the grids change, above 0 and below 1."""
    states: Literal["double", "keep"] = "double"
    """Whether the number of time steps doubles."""
    controls: Literal["double", "keep"] = "double"
    """Whether the number of control intervals doubles."""


class Twisting(Section):
    """Convolutions that depend on the place, from a point of the training on (`resode.twist`).

    The output is the same at first; the optimizer's state is carried over.
    """

    at: Inside
    """Fraction of the training at which convolutions are twisted, above 0 and below 1."""
    where: Annotated[tuple[int | str, ...], OneOrMany] = ()
    """Numbers of stages and names or patterns of layers (default: every 3x3 convolution)."""
    tie: Tie = "conformal"
    """How the kernels of a twist are tied: `free`, `odd`, `conformal`, `saddle` or `mixed`."""
    degree: PositiveInt = 1
    """Degree of the polynomial in the place."""
    coordinates: Coordinates = "centred"
    """Coordinates of a place: `centred`, `per-axis` or `published`."""

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `resode.twist`."""
        return {"tie": self.tie, "degree": self.degree, "coordinates": self.coordinates}


class Drift(Section):
    """The check of reversible gradients, each epoch on one batch.

    The largest relative error of a recovered state is the column `reconstruction_error` of metrics.csv.
    """

    limit: PositiveFloat = 1e-2
    """Largest relative error that is accepted, above 0."""
    beyond: Literal["fall_back", "stop"] = "fall_back"
    """What happens beyond the limit: `fall_back` goes on with checkpointed gradients, `stop` ends the run."""
