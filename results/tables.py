"""Write the measured figures of README.md and docs/ from the records in this folder.

python results/tables.py            rewrite the marked parts of all pages
python results/tables.py --check    exit 1 where a page differs from the records

A part lies between `<!-- name -->` and `<!-- /name -->`, where name is that of the function that writes it.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from resode import pretrained, quantities, recipes, weights
from resode.training import Experiment
from resode.training.records.departures import departures

HERE = Path(__file__).parent
MACHINES = ("", "-vectors")  # suffix of a record: a processor with matrix units, one with vectors for bf16
Lines = list[str]
Record = Mapping[str, Any]


def read(name: str | Path) -> Any:
    """A JSON record of this folder."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def table(head: str, row: str, records: Iterable[Record]) -> Lines:
    """A Markdown table: the names of the columns with | between, and a format string for a row."""
    rows = [f"| {row.format(**record)} |" for record in records]
    lines = [f"| {head} |", f"|{'---|' * (head.count('|') + 1)}", *rows]
    return [line.replace("  |", " |").replace(" (1.00 to 1.00)", "") for line in lines]


def hardware(environment: Record) -> str:
    """`2 threads of an Intel Xeon, torch 2.13.0+cpu`, or the GPU; all thread counts of a resumed run."""
    if environment.get("gpu"):
        return f"{environment['gpu']}, torch {environment['torch']}"
    counts = dict.fromkeys(part["threads"] for part in (environment, *environment.get("resumed", ())))
    threads = f"{' and '.join(map(str, counts))} thread{'' if list(counts) == [1] else 's'}"
    known = {"AMX": " with AMX", "AVX512 bf16": " with AVX-512 bf16"}
    units = next((text for name, text in known.items() if name in environment["cpu_capability"]), "")
    return f"{threads} of {environment['cpu']}{units}, torch {environment['torch']}"


def source(record: Record) -> str:
    """The command that made a record, and the machine."""
    return f"`{record['command']}`, {hardware(record['environment'])}"


def mean(values: Sequence[float]) -> str:
    """Mean and standard deviation, to two digits."""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def headline() -> Lines:
    """Six figures, each with its record."""
    fast = [read(f"fast-resnet20-cpu-vectors-{seed}/summary.json") for seed in range(3)]
    paper, checkpoint = read("he2016-resnet20/summary.json"), read("imports.json")[0]
    rows = [r for part in read("memory.json") for r in part["rows"]]
    deep = [
        r for r in rows if (r["family"], r["depth"], r["batch"], r["precision"]) == ("he", 1202, 128, "bf16")
    ]
    stored = next(r["total_bytes"] / 1e6 for r in deep if r["method"] == "stored")
    fitted = [r for r in deep if r["method"] == "within 600 MB"]
    times = [r["relative_time"] for r in fitted]
    training = [read(f"speed{machine}.json")["networks"][0]["forms"] for machine in MACHINES]
    inference = [read(f"inference{machine}.json")["rows"][0]["forms"] for machine in MACHINES]
    engine = [max(form["ratio"] for form in forms.values()) for forms in training]
    frozen = [forms["frozen"]["ratio"] for forms in inference]
    machine = hardware(read("fast-resnet20-cpu-vectors-0/environment.json"))
    figures = (
        ("ResNet-20 on CIFAR-10, 3 seeds (He et al. published 8.75 % error)",
         f"{mean([r['test']['top1_error'] for r in fast])} %",
         f"in {quantities.duration(median(r['seconds'] for r in fast))} on {machine}",
         " ".join(f"fast-resnet20-cpu-vectors-{seed}" for seed in range(3))),
        (f"ResNet-20 by the recipe of the paper, {paper['epochs']} epochs, 1 seed",
         f"{paper['test']['top1_error']:.2f} %", "", "he2016-resnet20"),
        (f"akamaster's published ResNet-20 ({checkpoint['published']}), evaluated here",
         f"{checkpoint['top1_error']:.2f} %", "", "imports.json"),
        (f"a bf16 training step of ResNet-1202 at batch 128 ({stored:,.0f} MB by backpropagation; AMX)",
         f"{fitted[0]['total_bytes'] / 1e6:,.0f} MB",
         f"in {min(times):.2f} to {max(times):.2f} times the time", "memory.json"),
        ("training ResNet-20, compiled in bf16, against a plain fp32 loop (AMX / AVX-512 bf16)",
         " / ".join(f"{r:.2f}" for r in engine), "times as fast", "speed.json speed-vectors.json"),
        ("inference with ResNet-20 in bf16 against the plain fp32 forward pass (AMX / AVX-512 bf16)",
         " / ".join(f"{r:.2f}" for r in frozen), "times as fast", "inference.json inference-vectors.json"),
    )  # fmt: skip
    return table(
        "what was measured | figure | record",
        "{what} | **{figure}** {more} | {links}",
        (
            {"what": what, "figure": figure, "more": more,
             "links": ", ".join(f"[{name}](results/{name})" for name in names.split())}
            for what, figure, more, names in figures
        ),
    )  # fmt: skip


def runs() -> Lines:
    """One row for each recorded run."""
    records = []
    for folder in sorted(p.parent for p in HERE.glob("*/summary.json")):
        run = read(folder / "summary.json")
        held = run["validation"]
        records.append({
            **run,
            "folder": folder.name,
            "held": f", {held['samples']:,} held out ({held['top1_error']:.2f} % error)" if held else "",
            "minutes": run["seconds"] / 60,
            "hardware": hardware(read(folder / "environment.json")),
        })  # fmt: skip
    return table(
        "run | data | test error (last epoch) | epochs, seed | wall time | images/s | hardware",
        "[{name}](../results/{folder}) | {data[name]}: {data[train]:,} trained on{held} "
        "| **{test[top1_error]:.2f} %** of {data[test]:,} | {epochs}, {seed} | {minutes:.1f} min "
        "| {images_per_second:,.0f} | {hardware}",
        records,
    )


def published() -> Lines:
    """One row for each published error, with runs of one recipe beside it."""
    figures: dict[tuple[float, str], list[str]] = {}
    for name in recipes.files():
        figure = Experiment.from_recipe(name).about.published
        if figure is not None:
            figures.setdefault((figure.top1_error, figure.source), []).append(name)
    found = recorded()
    rows = [
        _figure(names, {name: found[name] for name in names if name in found}) for names in figures.values()
    ]
    return table(
        "network | published error | ours (last epoch, mean over seeds) | protocol: theirs / ours "
        "| epochs: theirs / ours | time of a run, hardware | command",
        "{network} | {theirs} | {ours} | {protocols} | {epochs} | {time} | `resode train {command}`",
        sorted(rows, key=lambda row: str(row["network"])),
    )


def recorded() -> dict[str, list[list[Path]]]:
    """The folders of finished runs by recipe, those of equal length, images and processor together."""
    groups: dict[tuple[str, int, int, str], list[Path]] = {}
    for file in sorted(HERE.rglob("summary.json")):
        run = read(file)
        if run["test"] is not None:
            cpu = read(file.with_name("environment.json"))["cpu"]
            groups.setdefault((run["name"], run["epochs"], run["data"]["train"], cpu), []).append(file.parent)
    found: dict[str, list[list[Path]]] = {}
    for (name, *_), folders in groups.items():
        found.setdefault(name, []).append(folders)
    return found


def _figure(names: Sequence[str], found: Mapping[str, Sequence[Sequence[Path]]]) -> Record:
    """The row of a published error that several recipes share, the source's own recipe among them.

    Shown are the runs of full length with the most seeds, then of the shortest time; never those with the
    lowest error.
    """
    source = next(name for name in names if not name.startswith("fast/"))
    theirs = Experiment.from_recipe(source)
    figure = theirs.about.published
    assert figure is not None
    row = {
        "network": source,
        "theirs": f"{figure.top1_error:.2f} %" + (f" ({figure.measured})" if figure.measured else ""),
        "ours": "not run", "protocols": _protocol(theirs), "epochs": theirs.epochs, "time": "",
        "command": source,
    }  # fmt: skip
    known = [(name, folders) for name, groups in found.items() for folders in groups]
    if not known:
        return row

    def founded(entry: tuple[str, Sequence[Path]]) -> tuple[bool, int, float]:
        runs = [read(folder / "summary.json") for folder in entry[1]]
        full = runs[0]["epochs"] == Experiment.from_recipe(entry[0]).epochs
        return full, len(runs), -median(run["seconds"] for run in runs)

    name, folders = max(known, key=founded)
    ours = Experiment.from_recipe(folders[0] / "experiment.yaml")
    runs = [read(folder / "summary.json") for folder in folders]
    full = ours.epochs == Experiment.from_recipe(name).epochs
    seeds = f"{len(runs)} seed" + "s" * (len(runs) > 1)
    short = "" if full else f", {ours.epochs} epochs only"
    if set(departures(ours.model_dump(mode="json"))) - {"epochs"}:
        short += ", an earlier form of the recipe"
    time = quantities.duration(median(run["seconds"] for run in runs))
    return {
        **row,
        "ours": f"**{mean([run['test']['top1_error'] for run in runs])} %** ({seeds}{short})",
        "protocols": f"{_protocol(theirs)} / {_protocol(ours)}",
        "epochs": f"{theirs.epochs} / {ours.epochs}",
        "time": f"{time}, {hardware(read(folders[0] / 'environment.json'))}",
        "command": name + ("" if full else f" --set epochs={ours.epochs}"),
    }


def _protocol(experiment: Experiment) -> str:
    """Optimizer, images and what else sets a training apart, `SGD, 45,000 images`."""
    held = experiment.data.validation
    words = [{"sgd": "SGD", "muon": "Muon"}.get(experiment.optimizer.name, experiment.optimizer.name)]
    if experiment.data.source == "cifar10":
        words.append(f"{50_000 - int(held if held >= 1 else 50_000 * held):,} images")
    extras = {
        "growing images": experiment.sizes, "smoothed labels": experiment.label_smoothing,
        "reflected borders": experiment.augment.padding == "reflect",
    }  # fmt: skip
    return ", ".join(words + [name for name, present in extras.items() if present])


def first_iterations() -> Lines:
    """Accuracy of every recipe of dynamic blocks after three hundred iterations."""
    return table(
        "recipe | parameters | accuracy on the test images | seed",
        "{recipe} | {parameters:,} | {top1_accuracy:.2f} % | {seed}",
        read("first_iterations.json"),
    )


def imports() -> Lines:
    """Published checkpoints: published error and ours."""
    return table(
        "checkpoint | published error | evaluated here | images",
        "{format} {model} | {published} | {top1_error:.2f} % | {samples:,}, {precision}",
        read("imports.json"),
    )


def trained() -> Lines:
    """The pretrained weights in the package."""
    records = []
    for name in pretrained.names():
        file = pretrained.FOLDER / f"{name}.safetensors"
        card = weights.read_card(file)
        model = card.specification.name if card.specification else ""
        records.append({**card.training, "name": name, "model": model, "size": file.stat().st_size / 1e6})
    return table(
        "name | test error | data | network | epochs, seed | size",
        "[{name}](../src/resode/pretrained/{name}.md) | {test_error:.2f} % of {test_samples:,} | {data} "
        "| {model} | {epochs}, {seed} | {size:.1f} MB",
        records,
    )


def dry_run() -> Lines:
    """The estimate of a dry run beside the time of the run."""
    r = read("dry_run.json")
    took = read(f"{r['run']}/summary.json")["seconds"] / 60
    off = 100 * (r["estimated_minutes"] / took - 1)
    return [
        f"For the run [{r['run']}](../results/{r['run']}) the estimate was {r['estimated_minutes']} min; "
        f"it took {took:.1f} min ({off:+.0f} %; one comparison)."
    ]


def data_path() -> Lines:
    """The time to make a batch beside the time of a step."""
    text = (
        "Making a batch of {batch_size} (gather, crop, flip, normalise) takes {batch_milliseconds:.2f} ms, "
        "{share_percent:.1f} % of the {step_milliseconds:.0f} ms of a ResNet-20 training step "
        "(`python benchmarks/data_path.py`, medians of {pairs} pairs, {machine})."
    )
    r = read("data_path.json")
    return [text.format(**r, machine=hardware(r["environment"]))]


def robustness() -> Lines:
    """Errors of a published checkpoint on changed images."""
    r = read("robustness.json")
    found = r["robustness"]
    errors = {f"{row['change']} {row['amount']}": row["top1_error"] for row in found["rows"]}
    shown = (
        "clean 0",
        "rotation -30",
        "rotation 30",
        "scale 0.7",
        "scale 1.3",
        "fgsm 1",
        "fgsm 8",
        "pgd 1",
        "pgd 2",
    )
    head = "clean | rotated by -30 | +30 | scaled by 0.7 | 1.3 | FGSM 1/255 | 8/255 | PGD 1/255 | 2/255"
    title = f"`{r['command']}`, in part ({found['images']:,} of {found['of']:,} images):"
    cells = " | ".join(f"{errors[name]:.1f} %" for name in shown)
    return [title, "", *table(head, cells, [{}])]


def states_controls() -> Lines:
    """Errors of a small parabolic network over its numbers of states and controls."""
    r = read("states_controls.json")
    points: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for run in r["runs"]:
        points.setdefault((run["scheme"], run["states"], run["controls"]), []).append(run)
    seeds = min(map(len, points.values()))
    title = (
        f"`{r['command']}`, {seeds} seed{'s' if seeds > 1 else ''} a point, one thread a run of "
        f"{r['environment']['cpu']}; error on {r['runs'][0]['samples']:,} held-out images:"
    )
    rows = table(
        "scheme | steps of the states | control intervals | parameters | evaluations | error",
        "{scheme} | {states} | {controls} | {parameters:,} | {evaluations:g} | {error} %",
        (
            {**found[0], "error": mean([run["validation_error"] for run in found])}
            for found in points.values()
        ),
    )
    return [title, "", *rows]


def dynamic_blocks() -> Lines:
    """The default network of DynamicBlocks beside its plain form."""
    text = (
        "A training step of DynamicBlocks' default network at batch {batch_size} is **{ratio:.2f} times** as "
        "fast as the plain form (quartiles {ratio_quartiles[0]:.2f} to {ratio_quartiles[1]:.2f} of {rounds} "
        "rounds in one process; {plain_images_per_second:.0f} and {resode_images_per_second:.0f} images/s, "
        "fp32, no compilation; `python benchmarks/dynamic_blocks.py`, {machine})."
    )
    r = read("dynamic_blocks.json")
    return [text.format(**r, machine=hardware(r["environment"]))]


def twist_cost() -> Lines:
    """A step of a twisted ResNet-20 beside the plain one."""
    lines = []
    for r in read("twist_cost.json"):
        plain = r["arms"]["plain"]
        rows = table(
            "form | multiply-adds | step | speed, of plain (quartiles) | kept for the backward pass "
            "| peak of the process",
            "{arm} | {millions:.1f} M | {milliseconds:.0f} ms | **{speed:.2f}** ({speed_quartiles[0]:.2f} to "
            "{speed_quartiles[1]:.2f}) | {kept:.2f} | {peak:.2f}",
            (
                {
                    **found,
                    "arm": arm,
                    "millions": found["multiply_adds"] / 1e6,
                    "kept": found["kept_bytes"] / plain["kept_bytes"],
                    "peak": found["peak_bytes"] / plain["peak_bytes"],
                }
                for arm, found in r["arms"].items()
            ),
        )
        title = (
            f"A training step of ResNet-20 at batch {r['batch_size']}, all convolutions twisted (conformal), "
            f"{r['form']}, {r['rounds']} rounds in one process ({source(r)}):"
        )
        lines += ["", title, "", *rows]
    return lines[1:]


def twist() -> Lines:
    """The paired experiment: each run, and each arm less the plain network."""
    r = read("twist.json")
    arms: dict[str, list[str]] = {}
    for e in r["effects"]:
        interval = f"{e['points']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}]"
        arms.setdefault(f"{e['arm']} | {{}} | {e['over']}", []).append(interval)
    each = table(
        "network | seed | parameters | multiply-adds | test error | rotated and scaled",
        "{arm} | {seed} | {parameters:,} | {millions:.1f} M | {top1_error[cifar10]:.2f} % "
        "| {top1_error[cifar10-warped]:.2f} %",
        ({**run, "millions": run["multiply_adds"] / 1e6} for run in r["runs"]),
    )
    effects = table(
        "less plain, points of error | as they are | rotated and scaled | interval over",
        "{row}",
        ({"row": row.format(" | ".join(intervals))} for row, intervals in arms.items()),
    )
    return [*each, "", *effects]


def memory() -> Lines:
    """Bytes, seconds and errors of every gradient method over depth."""
    lines = []
    for part in (*read("memory.json"), *read("memory-vectors.json")):
        rows = table(
            "network | method | activations | predicted | in all | time | error",
            "{name}-{depth} | {method} | {saved:,.1f} MB | {predicted:,.1f} MB | **{total:,.0f} MB** "
            "| {relative_time:.2f} | {gradient_error:.0e}",
            (
                {
                    **r,
                    **{key: r[f"{key}_bytes"] / 1e6 for key in ("saved", "predicted", "total")},
                    "name": {"he": "ResNet"}.get(r["family"], r["family"]),
                }
                for r in part["rows"]
            ),
        )
        first = part["rows"][0]
        remark = f"; {part['remark']}" if "remark" in part else ""
        title = f"Batch {first['batch']}, {first['precision']}, 32x32 images ({source(part)}{remark}):"
        lines += ["", title, "", *rows]
    return lines[1:]


def resnet1202() -> Lines:
    """The first iterations of ResNet-1202 within a budget."""
    text = (
        "The first {iterations} iterations of ResNet-1202 on CIFAR-10 (`{command}`): the loss falls from "
        "{loss_first_tenth:.2f} (mean of the first tenth) to {loss_last_tenth:.2f} (of the last), "
        "{seconds_an_iteration:.1f} s an iteration on {machine}; {memory}."
    )
    r = read("resnet1202.json")
    return [text.format(**r, machine=hardware(r["environment"]))]


def speed() -> Lines:
    """Training: every form from the plain loop to the compiled engine."""
    return on_machines("speed", "recipe", "ratio to the plain loop", "networks", "recipe")


def inference() -> Lines:
    """Inference: every form of a trained network."""
    return on_machines("inference", "network", "ratio to the plain forward pass", "rows", "model")


def on_machines(name: str, what: str, compared: str, networks: str, label: str) -> Lines:
    """A table for each recorded machine, with a row for each form of a network."""
    lines = []
    for machine in MACHINES:
        r = read(f"{name}{machine}.json")
        rows = table(
            f"{what} | form | images/s | {compared}",
            "{title} | {form} | {images_per_second:,.0f} | **{ratio:.2f}** ({lowest:.2f} to {highest:.2f})",
            (
                {
                    **found,
                    "form": form,
                    "title": f"{n[label]}, batch {n['batch_size']}" if form == "plain" else "",
                }
                for n in r[networks]
                for form, found in n["forms"].items()
            ),
        )
        lines += ["", f"{source(r)}:", "", *rows]
    return lines[1:]


KERNELS = ("batch_norm", "convolution", "subsample", "join", "follow")


def ablation() -> Lines:
    """What each of our kernels brings to a compiled bf16 training step."""
    r = read("ablation-vectors.json")
    records = []
    for network in r["networks"]:
        forms = network["forms"]
        without = [forms.get(f"all but {kernel}") for kernel in KERNELS]
        brought = [each and 1 / each["of_all_our_kernels"]["ratio"] for each in without]
        together = forms["all our kernels"]["of_torch_compile_alone"]
        records.append({
            "recipe": network["recipe"],
            "cells": " | ".join("" if each is None else f"{each:.2f}" for each in brought),
            **together,
        })  # fmt: skip
    head = "recipe | " + " | ".join(KERNELS) + " | all, over torch.compile alone (quartiles)"
    row = "{recipe} | {cells} | **{ratio:.2f}** ({lower_quartile:.2f} to {upper_quartile:.2f})"
    return [f"{source(r)}:", "", *table(head, row, records)]


def agreement() -> Lines:
    """The rates of `resode bench` beside those that runs record."""
    lines = []
    for machine in MACHINES:
        r = read(f"agreement{machine}.json")
        rates = (
            {key: ", ".join(f"{v:,.0f}" for v in row[key]) for key in ("bench", "metrics")}
            for row in r["rows"]
        )
        rows = table(
            "recipe | bench, images/s | metrics.csv, images/s | bench / metrics.csv",
            "{recipe} | {bench} | {metrics} | **{ratio:.2f}** ({lowest:.2f} to {highest:.2f})",
            (row | found for row, found in zip(r["rows"], rates, strict=True)),
        )
        lines += ["", f"{source(r)}:", "", *rows]
    return lines[1:]


def fast_trials() -> Lines:
    """Settings tried for a fast recipe, on held-out images."""
    records = []
    for folder in (HERE / "short-resnet20-validation", *sorted((HERE / "fast-trials").iterdir())):
        held = read(folder / "summary.json")["validation"]
        experiment = Experiment.from_recipe(folder / "experiment.yaml")
        ends = [0.0, *(part.until for part in experiment.sizes), 1.0]
        areas = [*((part.size / 32) ** 2 for part in experiment.sizes), 1.0]
        share = sum((b - a) * area for a, b, area in zip(ends[:-1], ends[1:], areas, strict=True))
        records.append({
            **held,
            "optimizer": experiment.optimizer,
            "other": _other_settings(experiment),
            "epochs": experiment.epochs,
            "whole": experiment.epochs * share,
        })  # fmt: skip
    return table(
        "optimizer | lr | other settings | epochs | epochs of whole images by pixels | held out | error",
        "{optimizer.name} | {optimizer.lr:g} | {other} | {epochs} | {whole:.1f} | {samples:,} "
        "| {top1_error:.2f} %",
        records,
    )


def _other_settings(experiment: Experiment) -> str:
    """The settings in which the trials differ, apart from the optimizer's."""
    highest = getattr(experiment.schedule, "peak", 0.25)  # of the one-cycle schedule
    assert experiment.model is not None
    found = {
        experiment.model.name.replace("he_resnet", "ResNet-"): experiment.model.name != "he_resnet20",
        f"batches of {experiment.batch_size}": experiment.batch_size != 128,
        f"highest lr at {highest:.0%}": highest != 0.25,
        "reflected border": experiment.augment.padding == "reflect",
        "alternate flips": experiment.augment.flip == "alternate",
        f"labels smoothed by {experiment.label_smoothing:g}": experiment.label_smoothing > 0,
        f"seed {experiment.seed}": experiment.seed != 0,
    }
    return ", ".join(words for words, present in found.items() if present)


PAGES: dict[str, tuple[Callable[[], Lines], ...]] = {
    "README.md": (headline,),
    "docs/analysis.md": (robustness,),
    "docs/data.md": (data_path,),
    "docs/dynamic-blocks.md": (states_controls,),
    "docs/memory.md": (memory, resnet1202),
    "docs/results.md": (published, runs, first_iterations),
    "docs/speed.md": (speed, ablation, dynamic_blocks, inference, fast_trials, agreement),
    "docs/training.md": (dry_run,),
    "docs/twist.md": (twist_cost, twist),
    "docs/weights.md": (imports, trained),
}


def rendered(page: str, text: str) -> str:
    """The text of a page, each part between its markers written anew."""
    for part in PAGES[page]:
        begin, end = f"<!-- {part.__name__} -->\n", f"<!-- /{part.__name__} -->"
        head, _, rest = text.partition(begin)
        if end not in rest:
            sys.exit(f"{page} has no part '{part.__name__}'")
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
            sys.exit(f"{page} differs from results/: run results/tables.py")
