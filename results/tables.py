"""Write the measured figures into README.md and docs: every number there comes from a record in this folder.

python results/tables.py            rewrite the marked parts
python results/tables.py --check    exit 1 where they are not what the records say
"""

import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from rich.console import Console

from resode import cost, create, pretrained, quantities, report, weights
from resode.report.statistics import mean_of
from resode.training import Experiment
from resode.training.recipe.experiment import OneCycle
from resode.training.recipe.reading import shipped as shipped_recipes
from resode.training.setup.image_sizes import phases

HERE = Path(__file__).parent


def read(name: str) -> Any:
    """A JSON record of this folder."""
    return read_json(HERE / name)


def read_json(file: Path) -> Any:
    """A JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def hardware(environment: Mapping[str, Any]) -> str:
    """`2 threads of an Intel Xeon, torch 2.13.0+cpu`; of a run that was resumed on others, each number.

    A GPU stands for itself.
    """
    if environment.get("gpu"):
        return f"{environment['gpu']}, torch {environment['torch']}"
    counts = dict.fromkeys(part["threads"] for part in (environment, *environment.get("resumed", ())))
    threads = f"{' and '.join(map(str, counts))} thread{'' if list(counts) == [1] else 's'}"
    known = {"AMX": " with AMX", "AVX512 bf16": " with AVX-512 bf16"}
    units = next((said for name, said in known.items() if name in environment["cpu_capability"]), "")
    return f"{threads} of {environment['cpu']}{units}, torch {environment['torch']}"


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


def published() -> list[str]:
    """Every recipe that states a published error, and what was reached by it here."""
    rows = [
        "| recipe | published error | ours (last epoch) | runs | epochs | trained on | time of a run, "
        "hardware | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    recorded: dict[tuple[str, int, int, str], list[Path]] = {}
    for file in sorted(HERE.rglob("summary.json")):
        summary = read_json(file)
        if summary["test"] is not None:
            cpu = read_json(file.parent / "environment.json")["cpu"]
            key = summary["name"], summary["epochs"], summary["data"]["train"], cpu
            recorded.setdefault(key, []).append(file.parent)
    begun = unfinished()
    for name in shipped_recipes():
        recipe = Experiment.from_recipe(name)
        if recipe.about.published is None:
            continue
        theirs = f"{recipe.about.published.top1_error:.2f} %"
        found = {key: folders for key, folders in recorded.items() if key[0] == name}
        for (_, epochs, images, _), folders in found.items():
            ours = mean_of([read_json(f / "summary.json")["test"]["top1_error"] for f in folders])
            spread = "" if ours.deviation is None else f" ± {ours.deviation:.2f}"
            seconds = median(read_json(f / "summary.json")["seconds"] for f in folders)
            environment = read_json(folders[0] / "environment.json")
            short = "" if epochs == recipe.epochs else f" --set epochs={epochs}"
            error = f"**{ours.mean:.2f}{spread} %** | {ours.n}"
            rows.append(
                f"| {name} | {theirs} | {error} | {epochs} of {recipe.epochs} "
                f"| {images:,} | {quantities.duration(seconds)}, {hardware(environment)} "
                f"| `resode train {name}{short}` |"
            )
        if not found:
            said = begun.get(name, f"not run | | {recipe.epochs}")
            rows.append(f"| {name} | {theirs} | {said} | | | `resode train {name}` |")
    return rows


def unfinished() -> dict[str, str]:
    """By recipe: how far a run has come whose checkpoint is in `results/unfinished`."""
    found = {}
    for folder in sorted(HERE.glob("unfinished/*")):
        name = Experiment.from_recipe(folder / "experiment.yaml").name
        epoch = (folder / "metrics.csv").read_text(encoding="utf-8").split()[-1].partition(",")[0]
        found[name] = f"not finished | | {epoch} of {Experiment.from_recipe(name).epochs}"
    return found


def imports() -> list[str]:
    """Published checkpoints: published error and ours."""
    rows = ["| checkpoint | published error | evaluated here | images |", "|---|---|---|---|"]
    for record in read("imports.json"):
        rows.append(
            f"| {record['format']} {record['model']} | {record['published']} | {record['top1_error']:.2f} % "
            f"| {record['samples']:,}, {record['precision']} |"
        )
    return rows


def trained() -> list[str]:
    """The weights that are shipped."""
    rows = [
        "| name | test error | data | network | epochs, seed | size |",
        "|---|---|---|---|---|---|",
    ]
    for name in pretrained.names():
        file = HERE.parent / "src" / "resode" / "shipped" / f"{name}.safetensors"
        card = weights.read_card(file)
        told, model = card.training, card.specification
        error = f"{told['test_error']:.2f} % of {told['test_samples']:,}"
        rows.append(
            f"| [{name}](src/resode/pretrained/{name}.md) | {error} "
            f"| {told['data']} | {model.name if model else ''} | {told['epochs']}, {told['seed']} "
            f"| {file.stat().st_size / 1e6:.1f} MB |"
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


def robustness() -> list[str]:
    """Errors of a published checkpoint on changed images."""
    r = read("robustness.json")
    found = r["robustness"]
    errors = {(row["change"], row["amount"]): row["top1_error"] for row in found["rows"]}
    shown = {
        "clean": ("clean", 0),
        "rotated by -30": ("rotation", -30),
        "+30": ("rotation", 30),
        "scaled by 0.7": ("scale", 0.7),
        "1.3": ("scale", 1.3),
        "FGSM 1/255": ("fgsm", 1),
        "8/255": ("fgsm", 8),
        "PGD 1/255": ("pgd", 1),
        "2/255": ("pgd", 2),
    }
    return [
        f"`{r['command']}`, in part ({found['images']:,} of {found['of']:,} images):",
        "",
        f"| {' | '.join(shown)} |",
        f"|{'---|' * len(shown)}",
        f"| {' | '.join(f'{errors[key]:.1f} %' for key in shown.values())} |",
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


def states_controls() -> list[str]:
    """What decides: the states, the controls, or the scheme?"""
    if not (HERE / "states_controls.json").exists():
        return ["Not run yet."]
    r = read("states_controls.json")
    errors: dict[tuple[str, int, int], dict[int, float]] = {}
    told: dict[tuple[str, int, int], dict[str, Any]] = {}
    for run in r["runs"]:
        point = run["scheme"], run["states"], run["controls"]
        errors.setdefault(point, {})[run["seed"]] = run["validation_error"]
        told[point] = run
    seeds = min(len(found) for found in errors.values())
    rows = [
        f"`{r['command']}`, {seeds} seed{'s' if seeds > 1 else ''} a point, one thread a run of "
        f"{r['environment']['cpu']}; error on {r['runs'][0]['samples']:,} held-out images:",
        "",
        "| scheme | steps of the states | control intervals | parameters | evaluations | error |",
        "|---|---|---|---|---|---|",
    ]
    for (scheme, states, controls), found in errors.items():
        values, run = list(found.values()), told[scheme, states, controls]
        spread = f" \N{PLUS-MINUS SIGN} {stdev(values):.2f}" if len(values) > 1 else ""
        rows.append(
            f"| {scheme} | {states} | {controls} | {run['parameters']:,} | {run['evaluations']:g} "
            f"| {fmean(values):.2f}{spread} % |"
        )
    return rows


def twist_cost() -> list[str]:
    """A step of a twisted ResNet-20 beside the plain one."""
    rows = []
    for r in read("twist_cost.json"):
        plain = r["arms"]["plain"]
        rows += [
            f"A training step of ResNet-20 at batch {r['batch_size']}, all convolutions twisted (conformal), "
            f"{r['form']}, {r['rounds']} rounds in one process (`{r['command']}`, "
            f"{hardware(r['environment'])}):",
            "",
            "| form | multiply-adds | step | of the plain speed (quartiles) | kept for the backward pass "
            "| peak of the process |",
            "|---|---|---|---|---|---|",
        ]
        for arm, found in r["arms"].items():
            low, high = found["speed_quartiles"]
            kept, peak = (found[k] / plain[k] for k in ("kept_bytes", "peak_bytes"))
            speed = "1" if arm == "plain" else f"**{found['speed']:.2f}** ({low:.2f} to {high:.2f})"
            rows.append(
                f"| {arm} | {found['multiply_adds'] / 1e6:.1f} M | {found['milliseconds']:.0f} ms | {speed} "
                f"| {kept:.2f} | {peak:.2f} |"
            )
        rows.append("")
    return rows[:-1]


def twist() -> list[str]:
    """The paired experiment."""
    if not (HERE / "twist.json").exists():
        return ["Not run yet."]
    r = read("twist.json")
    rows = [
        "| network | seed | parameters | multiply-adds | test error | rotated and scaled |",
        "|---|---|---|---|---|---|",
    ]
    for run in r["runs"]:
        errors = run["top1_error"]
        rows.append(
            f"| {run['arm']} | {run['seed']} | {run['parameters']:,} | {run['multiply_adds'] / 1e6:.1f} M "
            f"| {errors['cifar10']:.2f} % | {errors['cifar10-warped']:.2f} % |"
        )
    rows += [
        "",
        "| less plain, points of error | as they are | rotated and scaled | interval over |",
        "|---|---|---|---|",
    ]
    by_arm: dict[str, dict[str, Any]] = {}
    for effect in r["effects"]:
        by_arm.setdefault(effect["arm"], {})[effect["data"]] = effect
    for arm, found in by_arm.items():
        cells = [f"{e['points']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}]" for e in found.values()]
        rows.append(f"| {arm} | {' | '.join(cells)} | {next(iter(found.values()))['over']} |")
    return rows


def memory() -> list[str]:
    """Bytes, seconds and errors of every gradient method over depth."""
    if not (HERE / "memory.json").exists():
        return ["Not run yet."]
    rows = []
    for part in read("memory.json"):
        first = part["rows"][0]
        rows += [
            f"Batch {first['batch']}, {first['precision']}, 32x32 images (`{part['command']}`, "
            f"{hardware(part['environment'])}):",
            "",
            "| network | method | activations | predicted | in all | time | error |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in part["rows"]:
            name = "ResNet" if r["family"] == "he" else "reversible"
            rows.append(
                f"| {name}-{r['depth']} | {r['method']} | {r['saved_bytes'] / 1e6:,.1f} MB "
                f"| {r['predicted_bytes'] / 1e6:,.1f} MB | **{r['total_bytes'] / 1e6:,.0f} MB** "
                f"| {r['relative_time']:.2f} | {r['gradient_error']:.0e} |"
            )
        rows.append("")
    return rows[:-1]


def deepest() -> list[str]:
    """The bytes of the deepest networks at the batch that was asked for, least and plain."""
    rows = [
        r for part in read("memory.json") for r in part["rows"] if r["depth"] == 1202 and r["batch"] == 128
    ]
    lines = ["A training step at batch 128, parameters, gradients and momentum included:", ""]
    for family, precision, name in (
        ("he", "bf16", "ResNet-1202"),
        ("he", "fp32", "ResNet-1202"),
        ("reversible", "fp32", "a reversible network of that depth"),
    ):
        found = [r for r in rows if (r["family"], r["precision"]) == (family, precision)]
        bytes_of = {r["method"]: r["total_bytes"] / 1e6 for r in found}
        plain = bytes_of.pop("stored")
        least = min(bytes_of, key=bytes_of.__getitem__)
        how = "" if least.startswith("within") else f" ({least})"
        lines.append(f"- {name}, {precision}: **{bytes_of[least]:,.0f} MB**{how} in place of {plain:,.0f} MB")
    return lines


def resnet1202() -> list[str]:
    """The first iterations of ResNet-1202 within a budget."""
    if not (HERE / "resnet1202.json").exists():
        return ["Not run yet."]
    r = read("resnet1202.json")
    return [
        f"The first {r['iterations']} iterations of ResNet-1202 on CIFAR-10 (`{r['command']}`): the loss "
        f"falls from {r['loss_first_tenth']:.2f} (mean of the first tenth) to {r['loss_last_tenth']:.2f} (of "
        f"the last), {r['seconds_an_iteration']:.1f} s an iteration on {hardware(r['environment'])}; "
        f"{r['told']}."
    ]


MACHINES = ("", "-vectors")  # of a record's name: with matrix units, with vectors for bf16


def speed() -> list[str]:
    """What each step from the plain loop to the engine gives."""
    return on_machines(
        "speed",
        "| recipe | form | images/s | of the plain loop |",
        lambda r: {f"{n['recipe']}, batch {n['batch_size']}": n["forms"] for n in r["networks"]},
    )


def inference() -> list[str]:
    """How fast trained networks infer."""
    return on_machines(
        "inference",
        "| network | form | images/s | of the plain forward pass |",
        lambda r: {f"{n['model']}, batch {n['batch_size']}": n["forms"] for n in r["rows"]},
    )


GOALS: dict[str, float] = {
    "short/resnet20": 3,
    "he2016/resnet56": 2.5,
    "modern/resnet18": 2.5,
    "dynamicblocks/rk4": 3,
}
INFERENCE = ("he_resnet20", 15)


def peak() -> list[str]:
    """What the goals ask of the machine with vectors: a share of the rate of its largest matrix products."""
    r = read("bench-vectors.json")
    most, shape = r["matrix_peak_operations_per_second"], (3, 32, 32)
    rows = [
        f"`{' '.join(r['environment']['command'])}`, {hardware(r['environment'])}: "
        f"a peak of {most / 1e9:,.0f} GFLOP/s",
        "",
        "| | goal | operations of an image | plain loop, of the peak | the goal, of the peak |",
        "|---|---|---|---|---|",
    ]
    found = []
    for row in read("speed-vectors.json")["networks"]:
        model = Experiment.from_recipe(row["recipe"]).model
        assert model is not None
        work = 6 * cost.multiply_adds(create(model.name, **model.options), shape)
        found.append((f"{row['recipe']}, training", GOALS[row["recipe"]], work, row["forms"]["plain"]))
    name, times = INFERENCE
    plain = next(
        row["forms"]["plain"] for row in read("inference-vectors.json")["rows"] if row["model"] == name
    )
    found.append((f"{name}, inference", times, 2 * cost.multiply_adds(create(name), shape), plain))
    for label, goal, work, plain in found:
        share = plain["images_per_second"] * work / most
        rows.append(
            f"| {label} | {goal:g} times | {work / 1e6:,.0f} million | {share:.0%} | **{goal * share:.0%}** |"
        )
    return rows


def on_machines(name: str, head: str, networks: Callable[[Any], dict[str, Any]]) -> list[str]:
    """A table for each machine that there is a record of."""
    rows = []
    for machine in MACHINES:
        r = read(f"{name}{machine}.json")
        rows += ["", f"`{r['command']}`, {hardware(r['environment'])}:", "", head, "|---|---|---|---|"]
        for label, found in networks(r).items():
            rows += forms(label, found)
    return rows[1:]


def forms(label: str, found: dict[str, dict[str, float]]) -> list[str]:
    """A row for each form of a network: its rate, and the ratio to the plain form, which has no spread."""
    rows = []
    for name, form in found.items():
        spread = "" if name == "plain" else f" ({form['lowest']:.2f} to {form['highest']:.2f})"
        rows.append(
            f"| {label} | {name} | {form['images_per_second']:,.0f} | **{form['ratio']:.2f}**{spread} |"
        )
        label = ""
    return rows


def agreement() -> list[str]:
    """What `resode bench` tells beside what a run records."""
    rows = []
    for machine in MACHINES:
        r = read(f"agreement{machine}.json")
        rows += [
            "",
            f"`{r['command']}`, {hardware(r['environment'])}:",
            "",
            "| recipe | bench, images/s | metrics.csv, images/s | bench / metrics.csv |",
            "|---|---|---|---|",
        ]
        for row in r["rows"]:
            told, recorded = (", ".join(f"{rate:,.0f}" for rate in row[key]) for key in ("bench", "metrics"))
            spread = f"({row['lowest']:.2f} to {row['highest']:.2f})"
            rows.append(f"| {row['recipe']} | {told} | {recorded} | **{row['ratio']:.2f}** {spread} |")
    return rows[1:]


def fast_trials() -> list[str]:
    """Settings tried for a fast recipe, on held-out images."""
    rows = [
        "| optimizer | lr | what else | epochs | epochs of whole images by pixels | held out | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in (HERE / "short-resnet20-validation", *sorted((HERE / "fast-trials").iterdir())):
        summary = read_json(folder / "summary.json")
        experiment = Experiment.from_recipe(folder / "experiment.yaml")
        length = summary["iterations"]
        shares = zip(
            phases(experiment.sizes, length), [sizing.size for sizing in experiment.sizes] + [32], strict=True
        )
        whole = experiment.epochs * sum(count / length * (size / 32) ** 2 for (_, count), size in shares)
        rows.append(
            f"| {experiment.optimizer.name} | {experiment.optimizer.lr:g} | {_what_else(experiment)} "
            f"| {experiment.epochs} | {whole:.1f} | {summary['validation']['samples']:,} "
            f"| {summary['validation']['top1_error']:.2f} % |"
        )
    return rows


def _what_else(experiment: Experiment) -> str:
    """The settings in which trials of a fast recipe differ beside the optimizer's."""
    peak = experiment.schedule.peak if isinstance(experiment.schedule, OneCycle) else 0.25
    found = {
        f"batches of {experiment.batch_size}": experiment.batch_size != 128,
        f"highest lr at {peak:.0%}": peak != 0.25,
        "reflected border": experiment.augment.padding == "reflect",
        "alternate flips": experiment.augment.flip == "alternate",
        f"labels smoothed by {experiment.label_smoothing:g}": experiment.label_smoothing > 0,
        f"seed {experiment.seed}": experiment.seed != 0,
    }
    return ", ".join(words for words, present in found.items() if present)


PAGES: dict[str, dict[str, Callable[[], list[str]]]] = {
    "README.md": {
        "demo": demo,
        "deepest": deepest,
        "runs": runs,
        "first_iterations": first_iterations,
        "dynamic_blocks": dynamic_blocks,
        "imports": imports,
        "trained": trained,
        "data_path": data_path,
        "dry_run": dry_run,
        "robustness": robustness,
    },
    "docs/twist.md": {"twist_cost": twist_cost, "twist": twist},
    "docs/memory.md": {"memory": memory, "resnet1202": resnet1202},
    "docs/speed.md": {
        "speed": speed,
        "peak": peak,
        "inference": inference,
        "fast_trials": fast_trials,
        "agreement": agreement,
    },
    "docs/dynamic-blocks.md": {"states_controls": states_controls},
    "docs/results.md": {"published": published},
}


def rendered(page: str, text: str) -> str:
    """The text of a page with each part between its markers written anew."""
    for name, part in PAGES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        if not rest:
            sys.exit(f"{page} has no part '{name}'")
        text = head + begin + "\n".join(part()) + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = HERE.parent / page
        present = path.read_text(encoding="utf-8")
        made = rendered(page, present)
        if "--check" not in sys.argv:
            path.write_text(made, encoding="utf-8")
        elif made != present:
            sys.exit(f"{page} is not what results/ says: run results/tables.py")
