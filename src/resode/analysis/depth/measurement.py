"""Measurement: a network of dynamic blocks against the differential equation that it discretises.

theta(t) is kept, and each stage y' = f(theta(t), y) is solved

    in n, 2n, 4n and 8n steps of its own scheme     (step refinement)
    in n steps of Euler, Heun and RK4               (scheme swap)

If the network is that equation, the test error does not change, and states approach the flow at the order of
the scheme. Ott et al. 2021 (arXiv:2007.15386) and Queiruga et al. 2020 (arXiv:2008.02389) refine and swap;
Sander et al. 2022 (arXiv:2205.14612) and Cohen et al. 2021 (arXiv:2105.12245) measure smoothness in depth.
"""

import copy
from collections.abc import Iterable

import numpy as np
import torch

from resode.analysis.depth.changes import Changes
from resode.analysis.depth.convergence import FACTORS
from resode.analysis.depth.passes import Passes
from resode.analysis.depth.record import Depth, StageDepth, Thresholds
from resode.analysis.depth.schemes import other_schemes
from resode.analysis.depth.solution import scheme_of
from resode.analysis.depth.stage import StageMeasurement
from resode.analysis.depth.verdict import judge
from resode.data import Loader
from resode.data.matching import BY_NAME, How
from resode.data.raw import OnBadImage
from resode.errors import InputError
from resode.inference.evaluation import Prepared, prepare
from resode.inference.trained import Network, Trained, state_notes, trained_network
from resode.integrators import FixedStep
from resode.mode import mode
from resode.models import DynamicNet
from resode.models.dynamic import Visit
from resode.models.lifting import lift
from resode.progress import report
from resode.statistics import has_statistics

STAGE_IMAGES = 512  # on which stages are measured, at most half of all
STAGE_BATCH = 64  # of them at a time, in float64
STATISTICS = (1024, 2048)  # training images for running statistics: as many as test images, within these
STATISTICS_BATCH = 256  # of them at a time


def depth(
    net: Network,
    data: object = None,
    *,
    images: int | None = None,
    classes: How = BY_NAME,
    on_bad_image: OnBadImage | None = None,
    batch_size: int = 500,
    device: str = "auto",
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - a frozen value
) -> Depth:
    """Measure whether a network of dynamic blocks is the differential equation that it discretises.

        resode.analysis.depth("runs/hamiltonian").verdict
        resode.analysis.depth(net, (images, labels, test_images, test_labels))

    Args:
        net: a network, a run, a checkpoint, a .safetensors file, or the name of pretrained weights.
        data: as for `resode.evaluate`; test images are classified, and running statistics estimated anew on
            training images, where the data has some.
        images: how many test images, the first ones (default: all).
        classes: as for `resode.evaluate`.
        on_bad_image: as for `resode.evaluate`.
        batch_size: images at a time.
        device: "auto", "cpu", "cuda", ...
        thresholds: of the rules of the verdict.

    Raises:
        InputError: a network that `resode.lift` refuses, an adaptive solver, images or classes that do not
            fit the network, a number of images or a batch size that is not positive.
        IntegrityError: corrupt files.
    """
    for name, value in (("images", images), ("batch_size", batch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{name} cannot be {value!r}; give a number of images")
    trained = trained_network(net, device)
    network = _of_blocks(trained)
    test = prepare(trained, data, classes=classes, on_bad_image=on_bad_image)
    training = _training_images(trained, test, images, data, classes, on_bad_image)
    of, own = len(test.images.images), has_statistics(network)
    batches = test.batches(batch_size, images)
    count = batches.samples
    some = min(STAGE_IMAGES, -(-count // 2))
    passes = Passes(
        batches, sum(len(b.evaluations) for b in network.blocks()), _expected(network, some / count, training)
    )
    labels = torch.from_numpy(np.ascontiguousarray(test.images.images.labels[:count]))
    with mode(network, training=False):
        changes = Changes(network, labels, passes, training, own)
        logits, refinement = changes.refined()
        swaps = changes.swapped()
        stages = _stages(network, passes, some, thresholds)
    report(f"depth of {count:,} images", 1.0)
    verdict = judge(stages, refinement, swaps, count, thresholds)
    about = "none" if not own else "kept" if training is None else "kept and estimated anew"
    return Depth(
        path=trained.label,
        model=trained.model,
        data=test.images.name,
        split=test.split,
        images=count,
        of=of,
        stage_images=some,
        statistics=about,
        statistics_images=0 if training is None else training.samples,
        verdict=verdict.verdict,
        reason=verdict.reason,
        would_decide=verdict.would_decide,
        thresholds=thresholds,
        error=refinement[0].error_kept,
        distance=logits.distances[1],
        distances=dict(logits.distances),
        observed_order=logits.order,
        refinement=refinement,
        swaps=swaps,
        stages=stages,
        passes=round(passes.made, 2),
        notes=(*test.notes, *state_notes(trained.label, trained.module), *_notes(trained, about)),
    )


def _of_blocks(trained: Trained) -> DynamicNet:
    """The network, a ResNet lifted, as a network of dynamic blocks with fixed steps."""
    network = trained.module
    if not isinstance(network, DynamicNet):
        try:
            network = lift(network)
        except InputError as error:
            raise InputError(
                *(f"{trained.label}: {message.removeprefix('lift: ')}" for message in error.messages)
            ) from None
    for number, block in enumerate(network.blocks(), start=1):
        if not isinstance(block.stage.integrator, FixedStep):
            name = block.stage.integrator.name
            raise InputError(
                f"{trained.label}: stage {number} is integrated by {name}, which chooses its own steps, so "
                "that there are none to refine; --depth needs fixed steps (rk4, heun, ...)"
            )
        broken = [name for name, p in block.named_parameters() if not bool(p.isfinite().all())]
        if broken:
            raise InputError(
                f"{trained.label}: stage {number} has weights that are not finite ({broken[0]}); give others"
            )
    return network


def _training_images(
    trained: Trained,
    test: Prepared,
    images: int | None,
    data: object,
    classes: How,
    on_bad_image: OnBadImage | None,
) -> Loader | None:
    """Training images on which running statistics are estimated; None where there are none of either."""
    if not has_statistics(trained.module):
        return None
    try:
        found = prepare(trained, data, split="train", classes=classes, on_bad_image=on_bad_image)
    except InputError:  # the data has test images alone
        return None
    ours, theirs = found.images.images, test.images.images
    if len(ours) == len(theirs) and np.array_equal(ours.digests, theirs.digests):
        return None
    count = min(max(STATISTICS[0], min(images or len(theirs), STATISTICS[1])), len(ours))
    return found.batches(-(-count // -(-count // STATISTICS_BATCH)), count)  # of equal size, up to one


def _notes(trained: Trained, about: str) -> tuple[str, ...]:
    if about != "kept":
        return ()
    return (
        f"{trained.label}: running statistics are kept, not estimated anew, because the data has no training "
        "images; give (images, labels, test_images, test_labels), or data with both splits",
    )


def _expected(net: DynamicNet, share: float, training: Loader | None) -> float:
    """How many forward passes there will be, about."""
    blocks = [(scheme_of(block), block.stage.states.step(0)) for block in net.blocks()]
    own = sum(len(scheme.evaluations(step)) for scheme, step in blocks)
    others = sum(len(s.evaluations(step)) for scheme, step in blocks for s in other_schemes(scheme))
    return (sum(FACTORS) + others / own) * (1 if training is None else 2) + (sum(FACTORS) + 1) * share


def _stages(net: DynamicNet, passes: Passes, images: int, thresholds: Thresholds) -> tuple[StageDepth, ...]:
    """Every stage, from the states that the network gives it."""
    exact = copy.deepcopy(net).double().eval().requires_grad_(False)
    found = [StageMeasurement(number, b, passes) for number, b in enumerate(exact.blocks(), start=1)]
    for x in passes.inputs(images, STAGE_BATCH):
        exact.walk(x, _adding(found))
    return tuple(stage.result(thresholds) for stage in found)


def _adding(stages: Iterable[StageMeasurement]) -> Visit:
    """What passes the blocks of a network, one after another, and adds their states to the stages."""
    remaining = iter(stages)
    return lambda _, y, *difference: next(remaining).add(y, *difference)
