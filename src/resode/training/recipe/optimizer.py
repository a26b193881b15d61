"""Settings of the optimizer, and of the moving average of the parameters."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from resode.training.recipe.section import BelowOne, Inside, Section


class SGD(Section):
    """v <- momentum v + g + weight_decay theta; theta <- theta - lr v.

    With Nesterov's momentum, theta <- theta - lr (g + weight_decay theta + momentum v).
    """

    name: Literal["sgd"] = "sgd"
    """The optimizer: `sgd`, `adamw` or `muon`."""
    lr: PositiveFloat = 0.1
    """Learning rate at the peak of the schedule, above 0."""
    momentum: BelowOne = 0.9
    """Momentum, at least 0 and below 1; 0 for none."""
    nesterov: bool = False
    """Whether momentum is Nesterov's."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay, added to the gradient as weight_decay theta."""
    decay_norms: bool = True
    """Whether weight decay includes vectors and scalars: biases, scales of normalisations."""
    decay_biases: bool | None = None
    """Whether weight decay includes vectors outside normalisations, such as biases (default: decay_norms)."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    name: Literal["adamw"] = "adamw"
    """The optimizer: `sgd`, `adamw` or `muon`."""
    lr: PositiveFloat = 1e-3
    """Learning rate at the peak of the schedule, above 0."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of the averages of gradients and of their squares, each at least 0 and below 1."""
    eps: PositiveFloat = 1e-8
    """Number added to the denominator of a step."""
    weight_decay: NonNegativeFloat = 1e-2
    """Decoupled weight decay: a step subtracts lr weight_decay theta."""
    decay_norms: bool = True
    """Whether weight decay includes vectors and scalars: biases, scales of normalisations."""
    decay_biases: bool | None = None
    """Whether weight decay includes vectors outside normalisations, such as biases (default: decay_norms)."""


class Muon(Section):
    """Muon for the kernels of convolutions, SGD for all other parameters (Jordan et al. 2024).

    W <- (1 - lr weight_decay) W - lr max(1, sqrt(o / i)) U V', where U S V' is the momentum as a matrix of
    o outputs and i inputs. The schedule scales both learning rates.
    """

    name: Literal["muon"] = "muon"
    """The optimizer: `sgd`, `adamw` or `muon`."""
    lr: PositiveFloat = 0.05
    """Learning rate of kernels at the peak of the schedule, above 0."""
    momentum: BelowOne = 0.9
    """Momentum of kernels, at least 0 and below 1."""
    nesterov: bool = True
    """Whether momentum of kernels is Nesterov's."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay of kernels: a step subtracts lr weight_decay W."""
    others: SGD = SGD(nesterov=True, weight_decay=5e-4)
    """SGD for all parameters that are not kernels of convolutions."""


Optimizer = Annotated[SGD | AdamW | Muon, Field(discriminator="name")]


class Average(Section):
    """Exponential moving average of the parameters: a <- decay a + (1 - decay) theta after every step.

    The averaged network is the one that is evaluated. Statistics of its normalisations are estimated anew.
    """

    decay: Inside = 0.999
    """Decay of the average per step, above 0 and below 1."""
    samples: PositiveInt = 5120
    """Training images on which statistics of normalisations are estimated."""
