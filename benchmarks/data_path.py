"""What the engine's data path costs: the share of a training step that goes into making its batch.

In one process, alternating: a batch is made (gathered, cropped, flipped, normalised), then a whole training
step of the same recipe is done; the ratio of the medians is printed. Goal: below 5 % for ResNet-20 on a CPU.

    python benchmarks/data_path.py [--recipe short/resnet20] [--steps 30] [--json]
"""

import argparse
import json
import statistics
import time

import torch

from resode.training import Experiment
from resode.training.loop.step import Trainer
from resode.training.process.allocator import keeping_freed_memory
from resode.training.records.environment import environment
from resode.training.setup.preparation import prepare


def measure(recipe: str, steps: int, data: str | None) -> dict[str, object]:
    """Median seconds of a batch and of a step, over `steps` pairs after three for warming up."""
    experiment = Experiment.from_recipe(recipe, {"data.source": data} if data else {})
    setup = prepare(experiment)
    trainer = Trainer(setup)
    batches, whole = [], []
    for number in range(steps + 3):
        begin = time.perf_counter()
        setup.training.batch(1, number % setup.training.steps)
        middle = time.perf_counter()
        trainer.step()
        end = time.perf_counter()
        if number >= 3:
            batches.append(middle - begin)
            whole.append(end - middle)
    batch, step = statistics.median(batches), statistics.median(whole)
    return {
        "recipe": recipe,
        "batch_size": setup.experiment.batch_size,
        "precision": setup.experiment.precision,
        "batch_milliseconds": 1e3 * batch,
        "step_milliseconds": 1e3 * step,
        "share_percent": 100 * batch / step,
        "images_per_second": setup.experiment.batch_size / step,
        "pairs": steps,
        "environment": environment(setup.device),
    }


@keeping_freed_memory()  # as the engine does
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="short/resnet20")
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.recipe, arguments.steps, arguments.data)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{result['recipe']}, batch {result['batch_size']}, {result['precision']}, "
        f"{torch.get_num_threads()} threads\n"
        f"making a batch   {result['batch_milliseconds']:8.2f} ms\n"
        f"a training step  {result['step_milliseconds']:8.2f} ms "
        f"({result['images_per_second']:.0f} images/s)\n"
        f"data path        {result['share_percent']:8.2f} % of a step"
    )


if __name__ == "__main__":
    main()
