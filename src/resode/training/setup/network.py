"""Network: what is trained, with which initial weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from resode import weights
from resode.data.matching import ClassOrder
from resode.errors import InputError
from resode.models import create, name_and_options
from resode.training.process.device import place
from resode.training.recipe.experiment import Plugin
from resode.training.recipe.network import Model, WarmStart
from resode.training.setup.checks import check_fits_data
from resode.training.setup.data import TrainingData
from resode.training.setup.warm_start import StartingPoint


@dataclass(frozen=True)
class Network:
    """A network before it is built: a user's module, or a registered model.

    Args:
        module: the user's; None: `model` is built.
        model: the registered model.
        init: the weights file that training starts from; None: weights are random.
        seed: of random weights, and of dropout later on.
        recipe: where the model is named, for error messages.
        plugins: that may define it.
    """

    module: nn.Module | None
    model: Model | None
    init: WarmStart | None
    seed: int
    recipe: str
    plugins: Sequence[Plugin] = ()

    @property
    def specification(self) -> weights.Specification | None:
        """Name and options for the header of a weights file; None: no registered model."""
        return weights.Specification(self.model.name, self.model.options) if self.model else None

    def abstract(self) -> nn.Module | None:
        """The user's module, or the model on the meta device; None where it cannot be built without values.

        Raises:
            InputError: the model cannot be built.
        """
        if self.module is not None or self.model is None:
            return self.module
        try:
            with torch.device("meta"):
                return create(self.model.name, **self.model.options)
        except InputError as error:
            unknown = any("unknown" in line for line in error.messages)
            plugged = [f"was made with --plugin {plugin.path}" for plugin in self.plugins if unknown]
            raise InputError(*(f"{self.recipe}: {line}" for line in (*error.messages, *plugged))) from None
        except RuntimeError:
            return None

    def resolved(self, data: TrainingData) -> "Network":
        """With the options that the data decides (classes and input channels), if a model is built.

        Raises:
            InputError: no model, or options that contradict the data.
        """
        if self.module is not None:
            return replace(self, model=model_of(self.module))
        if self.model is None:
            raise InputError(
                f"{self.recipe}: 'model' is missing (`resode list models`), and no module is given"
            )
        by_data = {"classes": len(data.classes), "in_channels": data.shape[0]}
        check_fits_data(self.model.options, by_data, data.dataset.name)
        return replace(self, model=Model(name=self.model.name, **{**self.model.options, **by_data}))

    def build(self, device: torch.device, start: StartingPoint, order: ClassOrder | None) -> nn.Module:
        """The module with its initial weights, on the device.

        Args:
            device: where it goes.
            start: what the weights file decides.
            order: of the data's classes among those of the file.
        """
        torch.manual_seed(self.seed)
        module = self.module
        if module is None:
            assert self.model is not None
            module = create(self.model.name, **self.model.options)
        if self.init is not None:
            weights.load_into(module, self.init.path, new_head=self.init.new_head)
            if order is not None:
                start.permute_head(module, order)
        return place(module, device)


def model_of(module: nn.Module) -> Model | None:
    """The registered model that a module was created as; None for a user's own, or one edited since."""
    created = name_and_options(module)
    if created is None:
        return None
    with torch.device("meta"):
        original = create(created[0], **created[1]).state_dict()
    if weights.mismatches(original, module.state_dict()):
        return None
    return Model(name=created[0], **created[1])
