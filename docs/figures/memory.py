"""Draw the bytes of a training step over depth from results/memory.json into memory.png beside this file.

python docs/figures/memory.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
FAMILIES = {"he": ("ResNet", "-"), "reversible": ("reversible network", "--")}


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the bytes of activations over depth, a line for each network and method."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    kinds = dict.fromkeys((r["family"], r["method"]) for r in rows if not r["method"].startswith("within"))
    for family, method in kinds:
        found = sorted(
            (r["depth"], r["saved_bytes"] / 1e6)
            for r in rows
            if (r["family"], r["method"]) == (family, method)
        )
        name, style = FAMILIES[family]
        axes.loglog(*zip(*found, strict=True), style, marker="o", markersize=4, label=f"{name}, {method}")
    depths = sorted({r["depth"] for r in rows})
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.set_xlabel("layers")
    axes.set_ylabel("activations of a training step, MB")
    axes.set_title(f"batch {rows[0]['batch']}, {rows[0]['precision']}, 32x32 images", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    records = json.loads((HERE.parent.parent / "results" / "memory.json").read_text(encoding="utf-8"))
    draw(
        [row for record in records for row in record["rows"] if row["precision"] == "fp32"],
        HERE / "memory.png",
    )
