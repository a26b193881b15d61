"""Robustness: the error of a network on images that are turned, scaled, attacked or corrupted.

    rotation, scale    v(x) = u(R(-a) x / s)                          by `resode.data.warped`
    FGSM               v = P(u + eps sign dL/du)                      Goodfellow et al. 2015, arXiv:1412.6572
    PGD                v <- P(v + h sign dL/dv),  v_0 = P(u + U(-eps, eps))
                                                                      Madry et al. 2018, arXiv:1706.06083
    corruptions        the published arrays     Hendrycks and Dietterich 2019, arXiv:1903.12261

u are pixels in [0, 1], before any normalisation, L is the cross-entropy, and P goes to the nearest image in
[0, 1] with |v - u| <= eps at every pixel and channel. The gradient is that of the network in evaluation mode.
A gradient that is only near hides weaknesses (Athalye et al. 2018, arXiv:1802.00420), so blocks of the
continuous adjoint are differentiated through their own steps here.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resode import randomness
from resode.blocks import dynamic_blocks
from resode.data import Batch, Images
from resode.data.corruptions import SEVERITIES, STANDARD, Corruptions
from resode.data.images import Labels, Pixels
from resode.data.warped import resampled
from resode.errors import InputError
from resode.gradients import Adjoint, Stored
from resode.mode import mode
from resode.training.loop.evaluation import evaluate
from resode.weights import Preprocessing

STEPS: Final = 10  # of PGD
SEED: Final = 0  # of the choice of images and of the random starts
STEP: Final = 2.5 / STEPS  # in units of eps: enough to go from any start to any corner (Madry et al.)
CHANGES: Final = (
    ("clean", 0),
    *(("rotation", degrees) for degrees in (-30, -20, -10, 10, 20, 30)),
    *(("scale", factor) for factor in (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)),
    *(("fgsm", levels) for levels in (1, 2, 4, 8)),
    *(("pgd", levels) for levels in (1, 2, 4, 8)),
)
_PASSES: Final = {"clean": 1, "rotation": 1, "scale": 1, "fgsm": 4, "pgd": 3 * STEPS + 1}  # forward, about


class OfPixels(nn.Module):
    """A network behind its preprocessing: images (N, C, H, W) in [0, 1] -> logits (N, classes)."""

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.module, self.preprocessing = module, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(self.preprocessing(images))
        return logits


# ---------------------------------------------------------------- changes of images


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images turned about their centre, counterclockwise as seen, mirrored where they end.

    Args:
        images: (N, C, H, W) in [0, 1].
        degrees: the angle.

    Raises:
        InputError: no such images, an angle that is not finite.
    """
    return _warped(images, math.radians(degrees), 1.0)


def scaled(images: Tensor, factor: float) -> Tensor:
    """Images magnified from their centre (above 1), or made smaller and mirrored where they end.

    Args:
        images: (N, C, H, W) in [0, 1].
        factor: above 0.

    Raises:
        InputError: no such images or factor.
    """
    return _warped(images, 0.0, factor)


def _warped(images: Tensor, angle: float, scale: float) -> Tensor:
    _check(images)
    if not (math.isfinite(angle) and 0 < scale < math.inf):
        raise InputError(f"rotation by {angle} and scale {scale}: finite numbers are needed, a scale above 0")
    both = (torch.full((len(images),), value, dtype=torch.float64) for value in (angle, scale))
    return resampled(images, *both)


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The fast gradient sign method: one step to the corner of the ball where the linearised loss is largest.

        v = P(u + eps sign dL(u)/du)

    Args:
        network: images in [0, 1] -> logits (`OfPixels` makes one); it is attacked in evaluation mode, and is
            as before in the end.
        images: u, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        eps: the largest change of a pixel, in [0, 1].

    Returns:
        v, like `images`.

    Raises:
        InputError: no such images or eps; a network whose output has no gradient in its input.
    """
    _check(images, eps=eps)
    return (images + eps * _direction(network, images, labels)).clamp(0, 1)


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    steps: int,
    step: float,
    generator: torch.Generator,
) -> Tensor:
    """Projected gradient descent on -L, from a random point of the ball; the last point counts.

        v_0 = P(u + U(-eps, eps)),    v_{k+1} = P(v_k + step sign dL(v_k)/dv)

    Args:
        network: as for `fgsm`.
        images: u, (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        eps: the largest change of a pixel, in [0, 1].
        steps: how many.
        step: the length of each, a change of a pixel.
        generator: of the start; one on the CPU gives the same start on every device.

    Returns:
        v, like `images`.

    Raises:
        InputError: no such images, eps, steps or step; a network whose output has no gradient in its input.
    """
    _check(images, eps=eps, steps=steps, step=step)
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=generator.device)
    v = (images + eps * (2 * noise.to(images.device) - 1)).clamp(low, high)
    for _ in range(steps):
        v = (v + step * _direction(network, v, labels)).clamp(low, high)
    return v


def _direction(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The sign of dL/du, L summed over the images, which do not influence each other."""
    u = images.detach().requires_grad_()
    with mode(network, training=False), _through_steps(network), torch.enable_grad():
        loss = F.cross_entropy(network(u), labels, reduction="sum")
        found = torch.autograd.grad(loss, u, allow_unused=True) if loss.requires_grad else (None,)
    if found[0] is None:
        raise InputError("an attack needs a gradient in the image, and this network has none (is it frozen?)")
    return found[0].sign()


@contextlib.contextmanager
def _through_steps(network: nn.Module) -> Iterator[None]:
    """Blocks of the continuous adjoint are differentiated through their own steps within."""
    own = {
        block: block.stage for block in dynamic_blocks(network) if isinstance(block.stage.gradient, Adjoint)
    }
    try:
        for block, stage in own.items():
            block.stage = replace(stage, gradient=Stored())
        yield
    finally:
        for block, stage in own.items():
            block.stage = stage


def _check(images: Tensor, **numbers: float) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            f"images {tuple(images.shape)} of {images.dtype}: (N, C, H, W) in floating point, from 0 to 1, "
            "are needed"
        )
    if wrong := [f"{name} is {value!r}" for name, value in numbers.items() if not 0 <= value < math.inf]:
        raise InputError(f"{', '.join(wrong)}; a finite number of at least 0 is needed")


# ---------------------------------------------------------------- errors


@dataclass(frozen=True)
class Row:
    """An error of the whole.

    Args:
        change: clean, rotation, scale, fgsm or pgd.
        amount: degrees; factor; eps in grey levels, of 255.
        top1_error: in percent.
    """

    change: str
    amount: float
    top1_error: float


def chosen(images: Images, number: int | None = None, seed: int = SEED) -> Images:
    """So many images (or all) in a random order that depends on the seed and on what they show alone."""
    by_content = np.argsort(images.digests, kind="stable")
    order = randomness.order(seed, 0, torch.arange(len(images)), "subset")[:number]
    index = by_content[order.numpy()]
    return Images(images.pixels[index], images.labels[index], images.digests[index])


def robustness(
    network: nn.Module,
    images: Images,
    *,
    batch_size: int = 100,
    seed: int = SEED,
    on_share: Callable[[float], None] = lambda share: None,
) -> tuple[Row, ...]:
    """The error under each of `CHANGES`; PGD takes `STEPS` steps of `STEP` eps.

    Args:
        network: images (N, C, H, W) in [0, 1] -> logits (N, classes).
        images: what is changed.
        batch_size: images at a time; an attack keeps all that a backward pass needs.
        seed: of the random starts of PGD.
        on_share: called with the share of the work that is done, up to 1.

    Raises:
        InputError: a network whose output has no gradient in its input.
    """
    starts = {amount: torch.Generator().manual_seed(seed) for change, amount in CHANGES if change == "pgd"}
    work = sum(_PASSES[change] for change, _ in CHANGES) * len(images)
    wrong: Counter[tuple[str, float]] = Counter()
    done = 0
    for u, labels in _batches(network, images.pixels, images.labels, batch_size):
        for change, amount in CHANGES:
            v = _changed(network, u, labels, change, amount, starts)
            with mode(network, training=False), torch.no_grad():
                wrong[change, amount] += int((network(v).argmax(1) != labels).sum())
            done += _PASSES[change] * len(u)
            on_share(done / work)
    return tuple(Row(*each, 100 * wrong[each] / len(images)) for each in CHANGES)


def _changed(
    network: nn.Module,
    u: Tensor,
    labels: Tensor,
    change: str,
    amount: float,
    starts: Mapping[float, torch.Generator],
) -> Tensor:
    eps = amount / 255
    match change:
        case "rotation":
            return rotated(u, amount)
        case "scale":
            return scaled(u, amount)
        case "fgsm":
            return fgsm(network, u, labels, eps)
        case "pgd":
            return pgd(network, u, labels, eps, STEPS, STEP * eps, starts[amount])
    return u


def corrupted(
    network: nn.Module,
    found: Corruptions,
    *,
    number: int | None = None,
    batch_size: int = 500,
    precision: str = "fp32",
    on_share: Callable[[float], None] = lambda share: None,
) -> dict[str, tuple[float, ...]]:
    """By corruption, the error in percent at each severity.

    Args:
        network: images (N, 3, 32, 32) in [0, 1] -> logits (N, 10).
        found: what `resode.data.corruptions.read` opened, its labels in the order of the logits.
        number: how many images of each severity, the same of all; all of them where left out.
        batch_size: images at a time.
        precision: "fp32", or "bf16" for autocast.
        on_share: called with the share of the work that is done, up to 1.
    """
    everything = torch.arange(len(found.labels))
    index = np.sort(randomness.order(SEED, 0, everything, "subset")[:number].numpy())
    errors: dict[str, tuple[float, ...]] = {}
    for name, by_severity in found.pixels.items():
        for pixels in by_severity:
            batches = _batches(network, pixels[index], found.labels[index], batch_size)
            scores = evaluate(network, (Batch(u, labels) for u, labels in batches), precision=precision)
            errors[name] = (*errors.get(name, ()), scores.top1_error)
            on_share(sum(map(len, errors.values())) / (SEVERITIES * len(found.pixels)))
    return errors


def mean_error(errors: Mapping[str, tuple[float, ...]]) -> float | None:
    """Over the fifteen standard corruptions and their severities, unnormalised; None where one is missing."""
    if not set(STANDARD) <= errors.keys():
        return None
    return sum(sum(errors[name]) for name in STANDARD) / (SEVERITIES * len(STANDARD))


def _batches(
    network: nn.Module, pixels: Pixels, labels: Labels, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (N, C, H, W) in [0, 1] and labels, where the network is."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        u = torch.from_numpy(np.ascontiguousarray(pixels[part])).to(device).permute(0, 3, 1, 2) / 255
        yield u, torch.from_numpy(labels[part]).to(device)
