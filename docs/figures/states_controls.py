"""Draw errors over numbers of states and controls from results/, for docs/dynamic-blocks.md.

python docs/figures/states_controls.py [--out docs/figures/states-controls.png]
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
INK, MUTED, COLOURS = "#1f2933", "#7b8794", ("#b3541e", "#1f6f8b", "#5b8c2a")
SCHEMES = {"euler": "Euler", "rk4": "RK4"}


def main() -> None:
    """Read the records, draw tables and curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("states-controls.png"))
    arguments = parser.parse_args()
    errors: dict[tuple[str, int, int], list[float]] = {}
    evaluations: dict[tuple[str, int, int], float] = {}
    for run in json.loads((ROOT / "results" / "states_controls.json").read_text(encoding="utf-8"))["runs"]:
        point = run["scheme"], run["states"], run["controls"]
        errors.setdefault(point, []).append(run["validation_error"])
        evaluations[point] = run["evaluations"]
    states, controls = sorted({n for _, n, _ in errors}), sorted({m for _, _, m in errors})
    values = [fmean(v) for v in errors.values()]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), width_ratios=(1, 1, 1.35), layout="constrained")
    for axis, scheme in zip(axes, SCHEMES, strict=False):
        table = np.array([[fmean(errors[scheme, n, m]) for m in controls] for n in states])
        axis.imshow(table, cmap="YlGnBu_r", vmin=min(values), vmax=max(values), aspect="auto")
        for i, n in enumerate(states):
            for j, m in enumerate(controls):
                found = errors[scheme, n, m]
                spread = f"\n±{stdev(found):.2f}" if len(found) > 1 else ""
                dark = table[i, j] < min(values) + 0.45 * (max(values) - min(values))
                colour = "white" if dark else INK
                axis.text(j, i, f"{table[i, j]:.2f}{spread}", ha="center", va="center", color=colour, size=9)
        axis.set(title=SCHEMES[scheme], xlabel="control intervals", ylabel="steps of the states")
        axis.set_xticks(range(len(controls)), controls)
        axis.set_yticks(range(len(states)), states)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    for m, colour in zip(controls, COLOURS, strict=False):
        for scheme, style, mark in (("euler", "--", "o"), ("rk4", "-", "s")):
            found_points = [(evaluations[scheme, n, m], fmean(errors[scheme, n, m])) for n in states]
            label = f"{m} control interval{'s' if m > 1 else ''}, {SCHEMES[scheme]}"
            axes[2].plot(
                *zip(*found_points, strict=True), style, marker=mark, color=colour, label=label, ms=5
            )
    axes[2].set_xscale("log", base=2)
    ticks = sorted(set(evaluations.values()))
    axes[2].set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes[2].minorticks_off()
    axes[2].set(title="error against cost", xlabel="evaluations of f in a forward pass", ylabel="error, %")
    axes[2].grid(color="#e4e7eb")
    axes[2].spines[["top", "right"]].set_visible(False)
    axes[2].legend(frameon=False, fontsize=8, labelcolor=INK)
    for axis in axes:
        axis.title.set_color(INK)
        axis.xaxis.label.set_color(MUTED)
        axis.yaxis.label.set_color(MUTED)
    figure.savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()
