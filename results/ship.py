"""Copy the weights of a finished run into the package as pretrained weights, with a model card.

python results/ship.py RUN NAME

NAME is the name of the recipe, or `RECIPE-what` where settings were changed. The licence is added to the
weights file; the card (NAME.md) is written from the records of the run.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from tables import hardware

from resode import pretrained, quantities, weights
from resode.training import Experiment
from resode.training.records import reader

LICENCE = "MIT"
LARGEST = 4_000_000  # bytes of a file


def ship(run: Path, name: str) -> Path:
    """Copy the weights of a run into the package and return their path."""
    found = reader.read(run)
    if not found.finished or found.result.test is None:
        sys.exit(f"{run}: not finished, or not evaluated on the test images")
    file = run / "model.safetensors"
    card = weights.read_card(file)
    if file.stat().st_size > LARGEST:
        sys.exit(f"{file}: {file.stat().st_size:,} bytes; {LARGEST:,} at most")
    out = pretrained.FOLDER / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    weights.save(weights.load(file), out, replace(card, training={**card.training, "licence": LICENCE}))
    pretrained.write_hashes()
    out.with_suffix(".md").write_text(model_card(found, card, name), encoding="utf-8")
    return out


def model_card(run: reader.RunRecord, card: weights.Card, name: str) -> str:
    """The model card as Markdown."""
    result, environment, taken = run.result, run.environment, card.preprocessing
    test, data, about = result.test, result.data, run.setting("about", "summary") or ""
    assert test is not None
    words = [str(word) for word in environment.get("command") or []]
    command = f" Command: `{' '.join(words)}`." if words else ""
    held_out = f", {quantities.count(data.validation)} held out" if data.validation else ""
    epochs = Experiment.from_recipe(str(result.name)).epochs
    longer = f" with {epochs} epochs" if epochs != result.epochs else ""
    published = f"; published: {result.published.top1_error:.2f} %{longer}" if result.published else ""
    options = card.specification.options if card.specification else {}
    facts = {
        "Network": f"`{result.model}`, {quantities.count(result.parameters)} parameters; "
        f"options `{json.dumps(options, sort_keys=True)}`.",
        "Test error": f"{test.top1_error:.2f} % of {test.samples:,} images of {data.name}, last epoch, "
        f"one run, no augmentation at test time{published}.",
        "Training": f"recipe `{result.name}`, seed {result.seed}, {result.epochs} epochs of "
        f"{quantities.count(data.train)} images{held_out}, {result.precision}.{command}",
        "Hardware": f"{hardware(environment)}, {quantities.duration(result.seconds)}.",
        "Input": f"{taken.size[0]}x{taken.size[1]} images in [0, 1] with {taken.channels} channels, minus "
        f"the mean {_numbers(taken.mean)}, divided by {_numbers(taken.std)} (done by `model.preprocessing`).",
        "Output": f"logits of {', '.join(taken.classes)}.",
        "Licence": f"{LICENCE}. For research and teaching on small images; its errors elsewhere are unknown.",
    }
    lines = [f"- **{name}**: {text}" for name, text in facts.items()]
    return "\n".join([f"# {name}", "", about, "", *lines, "", "```python", *_use(name), "```", ""])


def _use(name: str) -> list[str]:
    return [
        "import resode",
        "",
        f'model = resode.load("{name}")',
        "logits = model(model.preprocessing(images))  # uint8 or [0, 1], (N, C, H, W)",
    ]


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(ship(Path(sys.argv[1]), sys.argv[2]))
