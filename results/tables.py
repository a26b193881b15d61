"""Write the measured figures into README.md: every number there comes from a record in this folder.

python results/tables.py            rewrite the marked parts of README.md
python results/tables.py --check    exit 1 where they are not what the records say
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from resode import report

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def read(name: str) -> Any:
    """A JSON record of this folder."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def hardware(environment: dict[str, Any]) -> str:
    """`2 threads of an Intel Xeon, torch 2.13.0+cpu`."""
    threads = f"{environment['threads']} thread{'s' if environment['threads'] > 1 else ''}"
    return f"{threads} of {environment['cpu']}, torch {environment['torch']}"


def demo() -> list[str]:
    """The demo's result as the terminal shows it."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(HERE / "quickstart"))
    text = [line.rstrip() for line in console.export_text().splitlines()]
    return ["```", *(line for line in text if line), "```"]


def runs() -> list[str]:
    """One row a recorded run."""
    rows = [
        "| run | data | test error (last epoch) | epochs, seed | wall time | images/s | hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in sorted(p.parent for p in HERE.glob("*/summary.json")):
        summary, environment = read(f"{folder.name}/summary.json"), read(f"{folder.name}/environment.json")
        data = summary["data"]
        validation = summary["validation"]
        held_out = (
            f", {validation['samples']:,} held out ({validation['top1_error']:.2f} % error)"
            if validation
            else ""
        )
        rows.append(
            f"| [{summary['name']}](results/{folder.name}) "
            f"| {data['name']}: {data['train']:,} trained on{held_out} "
            f"| **{summary['test']['top1_error']:.2f} %** of {data['test']:,} "
            f"| {summary['epochs']}, {summary['seed']} | {summary['seconds'] / 60:.1f} min "
            f"| {summary['images_per_second']:,.0f} | {hardware(environment)} |"
        )
    return rows


def imports() -> list[str]:
    """Published checkpoints: published error and ours."""
    rows = ["| checkpoint | published error | evaluated here | images |", "|---|---|---|---|"]
    for record in read("imports.json"):
        rows.append(
            f"| {record['format']} {record['model']} | {record['published']} | {record['top1_error']:.2f} % "
            f"| {record['samples']:,}, {record['precision']} |"
        )
    return rows


def data_path() -> list[str]:
    """What a batch costs beside a step."""
    r = read("data_path.json")
    batch, step, share = r["batch_milliseconds"], r["step_milliseconds"], r["share_percent"]
    command, machine = "`python benchmarks/data_path.py`", hardware(r["environment"])
    return [
        f"Making a batch of {r['batch_size']} (gather, crop, flip, normalise) takes {batch:.2f} ms, "
        f"{share:.1f} % of the {step:.0f} ms of a ResNet-20 training step "
        f"({command}, medians of {r['pairs']} pairs, {machine})."
    ]


def dry_run() -> list[str]:
    """What a dry run estimated, beside what the run took."""
    r = read("dry_run.json")
    took = read(f"{r['run']}/summary.json")["seconds"] / 60
    off = 100 * (r["estimated_minutes"] / took - 1)
    return [
        f"`--dry-run` had estimated {r['estimated_minutes']} min for the run "
        f"[{r['run']}](results/{r['run']}), which then took {took:.1f} min ({off:+.0f} %; one comparison)."
    ]


def first_iterations() -> list[str]:
    """What every recipe of dynamic blocks learns in three hundred iterations."""
    rows = ["| recipe | parameters | accuracy on the test images | seed |", "|---|---|---|---|"]
    for record in read("first_iterations.json"):
        rows.append(
            f"| {record['recipe']} | {record['parameters']:,} | {record['top1_accuracy']:.2f} % "
            f"| {record['seed']} |"
        )
    return rows


def dynamic_blocks() -> list[str]:
    """The default network of DynamicBlocks beside its plain form."""
    r = read("dynamic_blocks.json")
    low, high = r["ratio_quartiles"]
    plain, ours = r["plain_images_per_second"], r["resode_images_per_second"]
    return [
        f"A training step of DynamicBlocks' default network at batch {r['batch_size']}: "
        f"**{r['ratio']:.2f} times** the plain form (quartiles {low:.2f} to {high:.2f} of {r['rounds']} "
        f"rounds in one process; {plain:.0f} and {ours:.0f} images/s, fp32, no compilation; "
        f"`python benchmarks/dynamic_blocks.py`, {hardware(r['environment'])})."
    ]


PARTS = {
    "demo": demo,
    "runs": runs,
    "first_iterations": first_iterations,
    "dynamic_blocks": dynamic_blocks,
    "imports": imports,
    "data_path": data_path,
    "dry_run": dry_run,
}


def rendered(text: str) -> str:
    """The text with each part between its markers written anew."""
    for name, part in PARTS.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        if not rest:
            sys.exit(f"README.md has no part '{name}'")
        text = head + begin + "\n".join(part()) + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    present = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(
            0
            if rendered(present) == present
            else "README.md is not what results/ says: run results/tables.py"
        )
    README.write_text(rendered(present), encoding="utf-8")
