"""Precision and compilation: what `auto` means, by timing training steps of the network itself.

The plain form (fp32, eager) is timed first; another is taken only where it is a tenth faster. A GPU that
computes in bf16 does so, without being asked. Compilation
takes minutes of its own, so it is tried only where a run is long enough to earn them. What was found is kept
with the machine and the network that it was found for.
"""

import contextlib
import copy
import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from resode import acceleration, atomic, cost
from resode.errors import ResodeError
from resode.memory import Shape
from resode.training.process.device import Precision
from resode.training.records.environment import environment
from resode.training.setup.memory import compiled

GAIN = 0.9  # of the time of the plain form, at most
OPERATIONS = 4e10  # of a step that is timed, at most
SHORT = 1e12  # operations of a run that is over before a measurement
FAILED = "compilation fails: "
WORTH = {"cpu": 1e14, "cuda": 1e16}  # operations of a run that is worth compiling for


@dataclass(frozen=True)
class Form:
    """How a network computes, and why."""

    precision: Precision
    compile: bool
    reason: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.precision}, compiled" if self.compile else self.precision


def choose(
    module: nn.Module,
    shape: Shape,
    *,
    precision: Literal["auto", "fp32", "bf16"],
    compile_: bool | Literal["auto"],
    batch: int,
    images: int,
    device: torch.device,
) -> Form:
    """The fastest form of a network on this machine, of those that are asked for.

    Args:
        module: on the device; it is not touched.
        shape: (C, H, W) of an image.
        precision: `auto` leaves it open.
        compile_: `auto` leaves it open.
        batch: images a step.
        images: how many the run will see.
        device: where it runs.
    """
    if precision != "auto" and compile_ != "auto":
        return Form(precision, compile_)
    work = _operations(module, shape)
    kinds: list[Precision] = ["fp32", "bf16"] if precision == "auto" else [precision]
    reason = ""
    if precision == "auto" and device.type == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        kinds = ["bf16"] if half else ["fp32"]
        reason = "this GPU computes in bf16" if half else "this GPU has no bf16"
    if work is not None and work * images < SHORT and precision == "auto" and compile_ in ("auto", False):
        return Form("fp32", compile=False)
    earns = compile_ == "auto" and (work or 0) * images > WORTH[device.type]
    options = [compile_] if compile_ != "auto" else [False, True] if earns else [False]
    forms = [Form(kind, option, reason) for option in options for kind in kinds]
    if len(forms) == 1:
        return forms[0]
    images_timed = max(2, min(batch, int(OPERATIONS / (work or 1e9))))
    key = _key(module, shape, forms, images_timed, device)
    if (known := _known(key)) is not None:
        return known
    chosen = _fastest(module, (images_timed, *shape), forms, device)
    if not chosen.reason.startswith(FAILED):
        _remember(key, chosen)
    return chosen


def _operations(module: nn.Module, shape: Shape) -> int | None:
    """Of a training step, for an image: three forward passes; None of a network that cannot be counted."""
    try:
        return 6 * cost.multiply_adds(module, shape)
    except Exception:  # a network of the user's that asks for numbers, say
        return None


def _fastest(module: nn.Module, shape: tuple[int, ...], forms: list[Form], device: torch.device) -> Form:
    """Of the eager forms the fastest; of it and its compiled form."""
    eager = [form for form in forms if not form.compile] or forms
    times = {form: step_seconds(module, shape, form, device) for form in eager}
    best = eager[0]
    for form in eager[1:]:
        if times[form] < GAIN * times[best]:
            best = form
    again = Form(best.precision, compile=True)
    if again in forms and again not in times:
        try:
            times[again] = step_seconds(module, shape, again, device)
        except Exception as error:  # whatever the compiler raises
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return Form(best.precision, compile=False, reason=f"{FAILED}{reason[:100]}")
        best = again if times[again] < GAIN * times[best] else best
    told = ", ".join(f"{1e3 * seconds:.0f} ms in {form}" for form, seconds in times.items())
    return Form(best.precision, best.compile, f"a step of {shape[0]} images takes {told}")


def step_seconds(
    module: nn.Module, shape: tuple[int, ...], form: Form, device: torch.device, seconds: float = 2.0
) -> float:
    """The median time of a forward and backward pass of a copy of `module`, after two to warm up."""
    network = copy.deepcopy(module).train()
    forward = compiled(network) if form.compile else network
    times: list[float] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        x = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        labels = torch.zeros(shape[0], dtype=torch.int64, device=device)
        while len(times) < 5 or (sum(times[2:]) < seconds and len(times) < 30):
            begin = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=form.precision == "bf16"):
                logits = forward(x)
            F.cross_entropy(logits.float(), labels).backward()
            for parameter in network.parameters():
                parameter.grad = None
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
            if len(times) > 2 and sum(times[2:]) > 4 * seconds:
                break
    return median(times[2:])


# ---------------------------------------------------------------- what was found before


def _key(module: nn.Module, shape: Shape, forms: list[Form], images: int, device: torch.device) -> str:
    here = environment(device)
    machine = [here[name] for name in ("torch", "cpu", "cpu_capability", "threads", "gpu", "cuda")]
    kernels = acceleration.version.get()()
    asked = [str(module), shape, [str(form) for form in forms], images, kernels, *machine]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _folder() -> Path:
    return atomic.cache_folder("choices")


def _known(key: str) -> Form | None:
    try:
        return Form(**json.loads((_folder() / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _remember(key: str, form: Form) -> None:
    with contextlib.suppress(OSError, ResodeError):  # where nothing can be written nothing is kept
        _folder().mkdir(parents=True, exist_ok=True)
        atomic.write_json(_folder() / f"{key}.json", asdict(form))
