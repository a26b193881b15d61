"""What each step from the plain loop to the engine gives, for several networks, in turns within one process.

    plain            fp32, NCHW, eager, one fixed batch, SGD over each parameter, `.item()` each step
    channels-last    convolutions on channels-last memory
    fused            one fused optimizer step, no `.item()`
    engine           resode's loop: data, crops and flips, bookkeeping (on a GPU a CUDA graph)
    engine, bf16     the same under autocast
    engine, compiled the same by torch.compile (--compile), in the faster precision

With --ablation these are the plain loop, the engine in its faster precision, and that engine compiled

    torch.compile alone    without any of our kernels
    all our kernels        as --compile does
    all but X              without one of them: batch_norm, convolution, kernel_gradient (torch's, within our
                           convolution)

A network that never calls a kernel has no row without it; the calls in one step are recorded.

With --callbacks single steps of the engine in fp32 alternate between no callback and ten that do nothing. The
figures are the ratio of the two times (the median over pairs of steps), and the time of the calls alone over
that of a step.

A round times each form for a while; the figure of a form is the median of its rate over that of the plain
loop in the same round, and over that of torch.compile alone in the same round.

    python benchmarks/training.py [--recipes short/resnet20,he2016/resnet56] [--rounds 5] [--seconds 4]
                                  [--compile | --ablation | --callbacks] [--device auto] [--json]
"""

import argparse
import copy
import dataclasses
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from timeit import timeit
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resode.kernels import convolution, fusion
from resode.training import Callback, Experiment
from resode.training.loop.callbacks import Callbacks
from resode.training.loop.step import Position, Trainer
from resode.training.process.allocator import keeping_freed_memory
from resode.training.process.device import choose_device
from resode.training.records.environment import environment
from resode.training.setup.execution import compiled
from resode.training.setup.preparation import prepare

RECIPES = "short/resnet20,he2016/resnet56,modern/resnet18,dynamicblocks/rk4"
ALONE, ALL = "torch.compile alone", "all our kernels"


def loop(module: nn.Module, layout: torch.memory_format, fused: bool) -> Callable[[torch.Tensor, Any], None]:
    """A step of a loop of one's own on a copy of the network."""
    network = copy.deepcopy(module).train()
    network.to(memory_format=layout)  # type: ignore[call-overload]  # unknown to torch's types
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, fused=fused)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        loss = F.cross_entropy(network(inputs.contiguous(memory_format=layout)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not fused:
            loss.item()

    return step


def engine(recipe: str, **keys: Any) -> Trainer:
    """The engine on a recipe."""
    return Trainer(prepare(Experiment.from_recipe(recipe, keys)))


def engine_step(trainer: Trainer) -> None:
    """The next step of an engine, from the first one again at the end of an epoch."""
    if trainer.position.step >= trainer.steps - 1:
        trainer.position = Position(epoch=trainer.position.epoch + 1)
    trainer.step()


def compiled_step(trainer: Trainer, backend: str | Callable[..., Any]) -> Callable[[], object]:
    """A step of an engine on a copy of the network, compiled with a backend of its own."""
    setup = dataclasses.replace(
        trainer.setup,
        module=copy.deepcopy(trainer.module),
        experiment=trainer.setup.experiment.model_copy(update={"compile": True}),
    )
    made = Trainer(setup)
    made.forward = compiled(made.module, backend)
    return partial(engine_step, made)


def calls(step: Callable[[], object]) -> Counter[str]:
    """How often one step calls each of our operators, and torch's gradient of a convolution."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        step()
    found: Counter[str] = Counter()
    for event in profile.events():
        if event.name.startswith("resode::") or event.name == "aten::convolution_backward":
            found[event.name.removeprefix("resode::")] += 1
    return found


def torch_kernel_gradient(g: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """What `resode.kernels.convolution.kernel_gradient` gives, by torch."""
    weight = x.new_empty(g.shape[1], x.shape[1], 3, 3).contiguous(memory_format=torch.channels_last)
    form = ([stride, stride], [1, 1], [1, 1], False, [0, 0], 1)
    dw: Tensor = torch.ops.aten.convolution_backward(g, x, weight, None, *form, [False, True, False])[1]
    return dw.permute(2, 3, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)


def ablation(trainer: Trainer) -> tuple[dict[str, Callable[[], object]], dict[str, dict[str, int]]]:
    """Compiled forms of an engine, with all, none and all but one of our kernels; what each calls in a step.

    Raises:
        RuntimeError: a form calls the kernel that it should not have, or the same ones as with all kernels.
    """
    forms: dict[str, Callable[[], object]] = {ALONE: compiled_step(trainer, "inductor")}
    forms[ALL] = compiled_step(trainer, partial(fusion.fused, without=()))
    forms[ALL]()  # compiles
    all_calls = calls(forms[ALL])
    for name in fusion.REPLACEMENTS:
        if all_calls[name]:
            forms[f"all but {name}"] = compiled_step(trainer, partial(fusion.fused, without={name}))
    if all_calls["convolution"]:
        patch = mock.patch.object(convolution, "kernel_gradient", torch_kernel_gradient)
        forms["all but kernel_gradient"] = patch(compiled_step(trainer, partial(fusion.fused, without=())))
    found: dict[str, dict[str, int]] = {}
    for name, step in forms.items():
        step()
        counted = calls(step)
        found[name] = dict(sorted(counted.items()))
        removed = fusion.REPLACEMENTS if name == ALONE else [name.removeprefix("all but ")]
        if any(counted[each] for each in removed) or (name != ALL and counted == all_calls):
            raise RuntimeError(f"{name}: a step calls {found[name]}, with all kernels {dict(all_calls)}")
    return forms, found


def quantiles(ratios: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "ratio": round(statistics.median(ratios), 3),
        "lower_quartile": round(low, 3),
        "upper_quartile": round(high, 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


def measure(
    recipe: str, rounds: int, seconds: float, compile_: bool, ablation_: bool, device: str
) -> dict[str, Any]:
    """The rates of all forms."""
    trainers = {
        "engine": engine(recipe, precision="fp32", compile=False, device=device),
        "engine, bf16": engine(recipe, precision="bf16", compile=False, device=device),
    }
    setup = trainers["engine"].setup
    batch = setup.training.batch(0, 0)
    forms: dict[str, Callable[[], object]] = {}
    for name, layout, fused in (
        ("plain", torch.contiguous_format, False),
        ("channels-last", torch.channels_last, False),
        ("fused", torch.channels_last, True),
    ):
        step = loop(setup.module, layout, fused)
        forms[name] = partial(step, batch.inputs, batch.targets)

    called: dict[str, dict[str, int]] = {}
    forms |= {name: partial(engine_step, trainer) for name, trainer in trainers.items()}
    if compile_ or ablation_:
        for name in trainers:  # to warm up
            seconds_of(forms[name], 0)
        fastest = min(trainers, key=lambda name: seconds_of(forms[name], 0))
        precision = trainers[fastest].setup.experiment.precision
        if ablation_:
            made, called = ablation(trainers[fastest])
            forms = {"plain": forms["plain"], f"engine, {precision}": forms[fastest]} | made
        else:
            whole = engine(recipe, precision=precision, compile=True, device=device)
            forms[f"engine, {precision}, compiled"] = partial(engine_step, whole)
    rates: dict[str, list[float]] = {name: [] for name in forms}
    warm_up = 1e-3 if ablation_ else 0  # forms of the ablation have made two steps
    for number in range(rounds + 1):
        for name, do in forms.items():
            time_ = seconds_of(do, seconds if number else warm_up)
            if number:  # the first round warms up, and records
                rates[name].append(len(batch.targets) / time_)

    def relative(name: str, other: str) -> dict[str, float]:
        return quantiles([mine / its for mine, its in zip(rates[name], rates[other], strict=True)])

    return {
        "recipe": recipe,
        "model": setup.experiment.model.name if setup.experiment.model else None,
        "batch_size": len(batch.targets),
        "rounds": rounds,
        "forms": {
            name: {
                "images_per_second": round(statistics.median(rates[name]), 1),
                **relative(name, "plain"),
                **({"of_torch_compile_alone": relative(name, ALONE)} if ALONE in rates else {}),
                **({"of_all_our_kernels": relative(name, ALL)} if ALL in rates else {}),
                **({"calls": called[name]} if name in called else {}),
            }
            for name in forms
        },
    }


def callbacks(recipe: str, seconds: float, device: str) -> dict[str, Any]:
    """What ten callbacks that do nothing cost in a step."""
    trainer = engine(recipe, precision="fp32", compile=False, device=device)
    idle, ten = Callback(), Callbacks([Callback() for _ in range(10)])
    for _ in range(5):
        engine_step(trainer)
    ratios: list[float] = []
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(ratios) < 10:
        pair = {}
        for callback in (idle, ten) if len(ratios) % 2 else (ten, idle):  # in turns: neither is always first
            trainer.callback = callback
            pair[callback] = seconds_of(lambda: engine_step(trainer), 1e-9)
        ratios.append(pair[ten] / pair[idle])
        times.append(pair[idle])
    step = statistics.median(times)
    calls = {"none": idle, "ten": ten}
    alone = {name: timeit(partial(each.stepped, 0, 0, 0.0), number=10_000) / 10_000 / step
             for name, each in calls.items()}  # fmt: skip
    return {"recipe": recipe, "pairs": len(ratios), **quantiles(ratios), "calls_of_a_step": alone}


def seconds_of(do: Callable[[], object], seconds: float) -> float:
    """Of one call, on average over at least two; over five where no time is given."""
    wait()
    calls, begin = 0, time.perf_counter()
    while calls < (2 if seconds else 5) or time.perf_counter() - begin < seconds:
        do()
        calls += 1
    wait()
    return (time.perf_counter() - begin) / calls


def wait() -> None:
    """Until a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@keeping_freed_memory()  # as the engine does
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--compile", action="store_true")
    kinds.add_argument("--ablation", action="store_true")
    kinds.add_argument("--callbacks", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for recipe in arguments.recipes.split(","):
        if arguments.callbacks:
            print(json.dumps(callbacks(recipe, arguments.rounds * arguments.seconds, arguments.device)))
            continue
        row = measure(
            recipe,
            arguments.rounds,
            arguments.seconds,
            arguments.compile,
            arguments.ablation,
            arguments.device,
        )
        rows.append(row)
        print(f"{recipe} ({row['model']}), batch {row['batch_size']}", file=sys.stderr)
        for name, found in row["forms"].items():
            line = f"  {name:<24}{found['images_per_second']:>9,.1f} images/s{found['ratio']:>7.2f}  "
            line += f"({found['lowest']:.2f} to {found['highest']:.2f})"
            for other in ("of_torch_compile_alone", "of_all_our_kernels"):
                if (its := found.get(other)) is not None:
                    line += f"   {other.replace('_', ' ')} {its['ratio']:.3f} "
                    line += f"({its['lower_quartile']:.3f} to {its['upper_quartile']:.3f})"
            print(line, file=sys.stderr)
    if arguments.json:
        command = " ".join(["python", "benchmarks/training.py", *sys.argv[1:]])
        here = environment(choose_device(arguments.device))
        print(json.dumps({"command": command, "networks": rows, "environment": here}, indent=2))


if __name__ == "__main__":
    main()
