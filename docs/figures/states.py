"""Draw the states of three networks trained on digits along time, for docs/dynamic-blocks.md.

python docs/figures/states.py [--epochs 5] [--out docs/figures/states.png]
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import resode
from resode import DynamicNet, Stage, TimeGrid
from resode.fields import Field, Hamiltonian, Parabolic, Preactivation
from resode.integrators import RK4, Euler, Integrator, SymplecticEuler

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STEPS, WIDTHS = 6, (16, 32)
INK, MUTED, COLOURS = "#1f2933", "#7b8794", ("#b3541e", "#1f6f8b", "#5b8c2a")
NETWORKS: dict[str, tuple[Field, Integrator]] = {
    "ResNet-v2 (Euler)": (Preactivation(norm="batch"), Euler()),
    "parabolic (RK4)": (Parabolic(norm="tv"), RK4()),
    "Hamiltonian (symplectic Euler)": (Hamiltonian(norm="tv"), SymplecticEuler()),
}


def network(field: Field, integrator: Integrator) -> DynamicNet:
    """The network of the page, for grey 8x8 images."""
    stages = [Stage(width, field, integrator, TimeGrid.uniform(STEPS)) for width in WIDTHS]
    return DynamicNet(stages, stem=1, classes=10)


def trained(field: Field, integrator: Integrator, epochs: int) -> tuple[torch.nn.Module, float]:
    """A network trained on digits, and its test error."""
    torch.manual_seed(0)
    experiment = resode.Experiment.from_recipe("quickstart-parabolic", {"epochs": epochs})
    with tempfile.TemporaryDirectory() as folder:
        result = resode.train(network(field, integrator), experiment, out=Path(folder) / "run")
        error = result.test_error
    assert error is not None
    return result.module, error


def sizes(times: tuple[float, ...], states: tuple[Tensor, ...]) -> list[tuple[list[float], list[float]]]:
    """Times and ||y(t)|| / ||y(0)|| (mean over the images) for each stage."""
    curves, count = [], STEPS + 1
    for first in range(0, len(states), count):
        norms = torch.stack([y.flatten(1).norm(dim=1) for y in states[first : first + count]])
        curves.append((list(times[first : first + count]), (norms / norms[0]).mean(1).tolist()))
    return curves


def main() -> None:
    """Train the networks, record their trajectories, draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "states.png")
    arguments = parser.parse_args()
    test = resode.load_data("digits").test
    assert test is not None
    images = torch.tensor(test.pixels).permute(0, 3, 1, 2).float() / 255
    images = (images - images.mean()) / images.std()

    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": INK})
    figure = plt.figure(figsize=(9, 6.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.45, 1))  # type: ignore[misc]  # two rows give two subfigures
    strips = upper.subplots(len(NETWORKS), STEPS + 1)
    curves = lower.subplots(1, 1)
    for row, (name, choice) in enumerate(NETWORKS.items()):
        module, error = trained(*choice, arguments.epochs)
        assert isinstance(module, DynamicNet)
        with torch.no_grad():
            times, states = module.trajectory(images)
        print(f"{name}: test error {error:.2f} %")
        first = torch.stack([y[0] for y in states[: STEPS + 1]])  # (times, C, 8, 8) of one image
        channel = int((first[-1] - first[0]).flatten(1).norm(dim=1).argmax())
        bound = float(first[:, channel].abs().max())
        for column, axes in enumerate(strips[row]):
            axes.imshow(first[column, channel], cmap="RdBu_r", vmin=-bound, vmax=bound)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"t = {times[column]:g}", color=MUTED)
        strips[row][0].set_ylabel(name.replace(" (", "\n("), rotation=0, ha="right", va="center")
        for number, (clock, ratio) in enumerate(sizes(times, states)):
            label = f"{name}, {error:.1f} % error" if number == 0 else None
            curves.plot(clock, ratio, color=COLOURS[row], marker="o", markersize=3, label=label)
    curves.axvline(STEPS, color=MUTED, linewidth=0.8, linestyle=":")
    curves.set_yscale("log", base=2)
    curves.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    curves.set_xlabel("time (a dotted line: the connector between the two stages)")
    curves.set_ylabel("||y(t)|| / ||y(0)||")
    curves.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False)
    figure.savefig(arguments.out, dpi=130)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
