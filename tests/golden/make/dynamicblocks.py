"""Golden tensors of the DynamicBlocks toolbox (EmoryMLIP/DynamicBlocks), in float64.

    python tests/golden/make/dynamicblocks.py PATH_OF_A_CHECKOUT COMMIT

One file for each network in `NETWORKS`, of two narrow blocks: four images of 8x8, the logits and gradients in
evaluation mode, and the state after three steps of the toolbox's own `runRKNet`: its scaling of images, loss,
optimizer, and clipping. Parameters begin at its own initial values, spread so that every bound of the
clipping acts; running statistics begin at those of two of its own forward passes. torchvision and matplotlib
are replaced by stubs; of the transforms, the scaling alone acts.
"""

import contextlib
import functools
import io
import json
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import STEPS, stand_ins, write
from torch import Tensor, nn

WIDTHS = [3, 4, 5]
EQUAL = ([0, 1, 2], [0, 1, 2])  # states and controls; rk1 never touches the last node
# Scheme, layer, norm; states and controls.
NETWORKS = {
    ("rk4", "parabolic", "tv"): EQUAL,
    ("rk4", "parabolic", "batch"): ([0, 0.5, 1.5], [0, 1.5]),
    ("rk4", "double", "batch"): ([0, 0.5, 1.5], [0, 1.5]),
    ("rk4", "preact_double", "tv"): EQUAL,
    ("rk1", "parabolic", "tv"): EQUAL,
    ("rk1", "parabolic", "batch"): ([0, 0.5, 1, 1.5, 2], [0, 1, 2]),
    ("rk1", "double", "tv"): ([0, 0.5, 1, 1.5, 2], [0, 1, 2]),
    ("rk1", "preact_double", "batch"): EQUAL,
}
NORMS = {"tv": "TvNorm", "batch": "Batch"}
LAYERS = {"parabolic": "DoubleSymLayer", "double": "DoubleLayer", "preact_double": "PreactDoubleLayer"}


def stub_plots() -> None:
    """Put a stub of matplotlib on the path of imports."""
    plots = types.ModuleType("matplotlib")
    plots.use = lambda name: None  # type: ignore[attr-defined]
    sys.modules.update({"matplotlib": plots, "matplotlib.pyplot": types.ModuleType("matplotlib.pyplot")})


class Batches:
    """The same batch several times, with the attributes of a loader that `trainNet` reads."""

    def __init__(self, batch: tuple[Tensor, Tensor], count: int) -> None:
        self.batch, self.count = batch, count
        self.sampler = types.SimpleNamespace(indices=[])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.count)


def spread(net: nn.Module) -> None:
    """Spread the parameters beyond the bounds of the clipping; each kind keeps its scale."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim == 4:
                p.mul_(1.5)
            elif name == "linear.weight":
                p.mul_(2.5)
            elif name.endswith("weight"):  # of a norm
                p.uniform_(0.6, 1.8)
            else:
                p.normal_(0, 0.3)


def whole_state(net: nn.Module) -> dict[str, Tensor]:
    """The state_dict; with norm "Batch" also the state layers of rk4, which it keeps in a plain list."""
    state = dict(net.state_dict())
    for b, block in enumerate(net.dynamicBlocks):  # type: ignore[arg-type]
        if isinstance(block.stateLayers, list) and _normalises_batches(block.controlLayers[0]):
            for k, step in enumerate(block.stateLayers):
                prefix = f"dynamicBlocks.{b}.stateLayers.{k}."
                state |= {prefix + name: t for name, t in step.state_dict().items()}
    return {name: t.detach().clone() for name, t in state.items()}


def _normalises_batches(layer: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in layer.modules())


def running(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The running statistics that the network uses."""
    return {n: t for n, t in state.items() if ".running_" in n and ".controlLayers." not in n}


def make(original: Any, scheme: str, layer: str, norm: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the options of one network."""
    states, controls = NETWORKS[scheme, layer, norm]
    torch.manual_seed(0)
    net = original.net.RKNet(
        states, controls, 3, 10, list(WIDTHS), dynamicScheme=original.schemes[scheme],
        layer=original.layers[layer], dynamicParams=NORMS[norm],
    )  # fmt: skip
    assert {t.dtype for t in net.parameters()} == {torch.float64}
    spread(net)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([3, 0, 9, 3])
    scaling = original.utils.getRunDefaults("cifar10", gpu=None)[2]
    inputs = torch.stack([scaling(image.permute(1, 2, 0).numpy()) for image in images])
    net.train()
    for _ in range(2):
        net(torch.randn(4, 3, 8, 8))
    net.eval()
    inputs.requires_grad_()
    logits = net(inputs)
    before = whole_state(net)
    original.utils.misfit(logits, labels)[0].backward()
    found = {
        **{f"state.{n}": t for n, t in before.items()},
        **{f"grad.{n}": p.grad.clone() for n, p in net.named_parameters() if p.grad is not None},
        "images": images, "labels": labels, "logits": logits.detach(),
        "input": inputs.detach().clone(), "input_grad": inputs.grad.clone(),
    }  # fmt: skip
    inputs.requires_grad_(False)
    net.zero_grad()
    found["losses"], found["learning_rates"] = trained(original, net, (inputs.detach(), labels))
    after = dict(net.named_parameters()) | running(whole_state(net))
    found |= {f"after.{n}": t.detach().clone() for n, t in after.items()}
    options = {"scheme": scheme, "layer": layer, "states": states, "controls": controls}
    return {n: t.contiguous() for n, t in found.items()}, options


def trained(original: Any, net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Train a network for three steps as `runRKNet` does; the losses, and the default rate of each epoch."""
    losses: list[float] = []

    def recording(*arguments: Any) -> Any:
        loss, probabilities = plain(*arguments)
        losses.append(loss.item())
        return loss, probabilities

    rates = default_rates(original.utils)
    plain, original.utils.misfit = original.utils.misfit, recording
    folder, loads = Path.cwd(), torch.load
    torch.load = functools.partial(loads, weights_only=False)  # of the module that `runRKNet` has just saved
    try:
        with tempfile.TemporaryDirectory() as made, contextlib.redirect_stdout(io.StringIO()):
            os.chdir(made)
            Path("results").mkdir()
            original.net.runRKNet(
                "cifar10", "golden", net=net, writeFile=False, gpu=None, lr=rates[:1],
                loaderTrain=Batches(batch, STEPS), loaderVal=Batches(batch, 1),
                loaderTest=Batches(batch, 1), nChanIn=3, nClasses=10,
            )  # fmt: skip
    finally:
        os.chdir(folder)
        original.utils.misfit, torch.load = plain, loads
    return torch.tensor(losses[:STEPS]), torch.from_numpy(rates.astype(np.float64).ravel())


def default_rates(utils: Any) -> np.ndarray:
    """The learning rates of the default training on a GPU, which need none."""
    has_gpu = torch.cuda.is_available
    torch.cuda.is_available = lambda: True
    try:
        rates: np.ndarray = utils.getRunDefaults("cifar10", gpu=0)[4]
    finally:
        torch.cuda.is_available = has_gpu
    return rates


def load_original(path: str) -> types.SimpleNamespace:
    """The modules of the toolbox in a folder."""
    stand_ins()
    stub_plots()
    sys.path.insert(0, path)
    import RKNet
    import utils
    from modules.PreactDoubleLayer import PreactDoubleLayer

    schemes = {"rk1": RKNet.rk1, "rk4": RKNet.rk4}
    layers = {"PreactDoubleLayer": PreactDoubleLayer, **vars(RKNet)}
    return types.SimpleNamespace(
        net=RKNet, utils=utils, schemes=schemes, layers={n: layers[c] for n, c in LAYERS.items()}
    )


def main(path: str, commit: str) -> None:
    torch.set_num_threads(1)
    made = {}
    with contextlib.redirect_stdout(io.StringIO()):
        original = load_original(path)
        for scheme, layer, norm in NETWORKS:
            tensors, options = make(original, scheme, layer, norm)
            about = {"norm": norm, "repository": "EmoryMLIP/DynamicBlocks", "commit": commit}
            about["what"] = f"{scheme}, {LAYERS[layer]}, {NORMS[norm]}: evaluation and {STEPS} training steps"
            metadata = {k: json.dumps(v) for k, v in (options | about).items()}
            made[f"dynamicblocks-{scheme}-{layer}-{norm}"] = tensors, metadata
    for name, (tensors, metadata) in made.items():
        write(name, tensors, metadata)


if __name__ == "__main__":
    main(*sys.argv[1:])
