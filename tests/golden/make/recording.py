"""Recording of an original while its own training code runs: what enters, and what three steps make of it.

The scripts in this folder import an original from a folder outside the repository and let its own loop, loss,
optimizer and schedule run in float64 on twelve small images. Hooks of torch note the rest:

    state.*      the network at the start          gradient.*   of the loss of the first step
    images       of each step, (N, H, W, 3) uint8  after.*      the network after the third step
    inputs       as they enter the network         losses       of each step
    labels       of each step                      rates        the learning rate of each step
    logits       of the first step's inputs, in evaluation mode, before the steps

`python akamaster.py FOLDER` writes its file into `tests/golden`; only numbers are kept. Where an original's
loop is a notebook's, `three_steps` takes its steps.
"""

import re
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

FOLDER = Path(__file__).parents[1]
STEPS, IMAGES, SIDE = 3, 12, 16


def perturbed(net: nn.Module, without: str | None = None) -> nn.Module:
    """Norms and biases away from their initial 1 and 0, so that each of them matters.

    Tensors whose names begin with `without` stay as they are.
    """
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            kept = without is not None and name.startswith(without)
            if tensor.is_floating_point() and tensor.ndim == 1 and not kept:
                tensor.add_(0.2 * torch.rand_like(tensor))
    return net


def images() -> tuple[Tensor, Tensor]:
    """Twelve images (N, H, W, 3) in uint8, and their labels: every class at least once."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(IMAGES) % 10


def three_steps(net: nn.Module, optimizer: torch.optim.Optimizer, side: int) -> dict[str, Tensor]:
    """Tensors noted of three steps on four images each, which the network takes as images / 255 - 0.5."""
    noted = {f"state.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.randint(0, 256, (STEPS, 4, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 10, (STEPS, 4))
    net.eval()
    with torch.no_grad():
        noted |= {"images": images, "labels": labels, "logits": net(images[0] / 255.0 - 0.5)}
    net.train()
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images[step] / 255.0 - 0.5), labels[step])
        loss.backward()
        if step == 0:
            gradients = ((name, p.grad) for name, p in net.named_parameters())
            noted |= {f"gradient.{name}": g.clone() for name, g in gradients if g is not None}
        optimizer.step()
        losses.append(loss.item())
    after = {f"after.{name}": tensor for name, tensor in net.state_dict().items()}
    return noted | after | {"losses": torch.tensor(losses)}


def write(name: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write a file into `tests/golden`."""
    path = FOLDER / f"{name}.safetensors"
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, about)
    print(path, path.stat().st_size, "bytes")


class Recording:
    """Notes the steps of one network, from its creation until `save`."""

    def __init__(self, net: nn.Module, loss: type[nn.Module]) -> None:
        self.net, self.loss = net, loss
        self.tensors = {f"state.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
        self.inputs: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.rates: list[float] = []
        net.register_forward_pre_hook(self.enters)
        nn.modules.module.register_module_forward_hook(self.leaves)
        register_optimizer_step_pre_hook(self.before_step)
        register_optimizer_step_post_hook(self.after_step)

    def enters(self, net: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if net.training and len(self.rates) < STEPS:
            self.inputs.append(arguments[0].detach().clone())
        return (arguments[0].to(torch.float64), *arguments[1:])

    def leaves(self, module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        if isinstance(module, self.loss) and self.net.training and len(self.rates) < STEPS:
            self.losses.append(result.detach().clone())
            self.labels.append(arguments[1].clone())

    def before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not self.rates:
            gradients = ((name, p.grad) for name, p in self.net.named_parameters())
            self.tensors |= {f"gradient.{name}": g.clone() for name, g in gradients if g is not None}
        self.rates.append(optimizer.param_groups[0]["lr"])

    def after_step(self, *_: object) -> None:
        if len(self.rates) == STEPS:
            self.tensors |= {f"after.{name}": t.clone() for name, t in self.net.state_dict().items()}

    def save(self, name: str, what: str, repository: str, commit: str) -> None:
        """Write the file; the network is left as it was at the start."""
        start = {n.removeprefix("state."): t for n, t in self.tensors.items() if n.startswith("state.")}
        self.net.load_state_dict(start)
        self.net.eval()
        with torch.no_grad():
            logits = self.net(self.inputs[0])
        batch = len(self.inputs[0])
        self.tensors |= {
            "images": images()[0][Cifar.seen[: STEPS * batch]].unflatten(0, (STEPS, batch)),
            "inputs": torch.stack(self.inputs), "labels": torch.stack(self.labels), "logits": logits,
            "losses": torch.stack(self.losses), "rates": torch.tensor(self.rates),
        }  # fmt: skip
        write(name, self.tensors, {"repository": repository, "commit": commit, "what": what})


# ---------------------------------------------------------------- stand-ins for torchvision and for a GPU


class _Step:
    """A transform of a pipeline: a function of one image."""

    def __init__(self, function: Callable[[object], object]) -> None:
        self.function = function

    def __call__(self, image: object) -> object:
        return self.function(image)


def _compose(steps: Iterable[Callable[[object], object]]) -> _Step:
    def apply(image: object) -> object:
        for step in steps:
            image = step(image)
        return image

    return _Step(apply)


def _normalise(mean: Iterable[float], std: Iterable[float]) -> _Step:
    mean, std = (torch.tensor(tuple(values))[:, None, None] for values in (mean, std))
    return _Step(lambda image: (image - mean) / std)


class Cifar(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Twelve images in place of a data set of torchvision; random crops and flips leave them as they are."""

    seen: ClassVar[list[int]] = []

    def __init__(
        self, root: str, train: bool = True, transform: object = None, download: bool = False
    ) -> None:
        pixels, labels = images()
        self.data, self.targets, self.transform = pixels.numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, number: int) -> tuple[object, int]:
        assert callable(self.transform)
        self.seen.append(int(number))
        return self.transform(self.picture(number)), self.targets[number]

    def picture(self, number: int) -> object:
        return self.data[number]


def stand_ins() -> None:
    """Put modules into the place of torchvision, and let `.cuda()` do nothing."""
    unchanged = lambda *_, **__: _Step(lambda image: image)  # noqa: E731
    transforms = types.ModuleType("torchvision.transforms")
    vars(transforms).update(
        Compose=_compose, RandomCrop=unchanged, RandomHorizontalFlip=unchanged, Normalize=_normalise,
        ToTensor=lambda: _Step(lambda image: torch.from_numpy(image).permute(2, 0, 1) / 255.0), Lambda=_Step,
    )  # fmt: skip
    datasets = types.ModuleType("torchvision.datasets")
    vars(datasets).update(CIFAR10=Cifar, CIFAR100=Cifar, MNIST=Cifar)
    utils = types.ModuleType("torchvision.utils")
    torchvision = types.ModuleType("torchvision")
    vars(torchvision).update(transforms=transforms, datasets=datasets, utils=utils)
    for module in (torchvision, transforms, datasets, utils):
        sys.modules[module.__name__] = module
    nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def scaled(path: Path, widths: dict[str, str]) -> types.ModuleType:
    """A module of the original, with smaller numbers for its widths."""
    source = re.sub(r"\b(" + "|".join(widths) + r")\b", lambda found: widths[found[0]], path.read_text())
    module = types.ModuleType(path.stem)
    module.__file__, module.__package__ = str(path), path.parent.name
    exec(compile(source, str(path), "exec"), vars(module))
    return module
