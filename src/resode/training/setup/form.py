"""Form: precision and compilation of a training step; `auto` is resolved by timing steps of the network.

The plain form (fp32, eager) is timed first; another one is chosen only where it is a tenth faster. A GPU that
computes in bf16 does so without timing. Compilation takes minutes, so it is tried only where a run is long
enough to gain them back. Results are cached for each network and machine.
"""

import contextlib
import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from resode import acceleration, atomic, cost
from resode.errors import ResodeError
from resode.memory import Shape
from resode.training.process.device import Precision
from resode.training.records.environment import environment
from resode.training.setup.execution import compiled

GAIN = 0.9  # largest time of a chosen form, in that of the plain form
OPERATIONS = 4e10  # largest number of operations in a step that is timed
SHORT = 1e12  # operations of a run that takes less time than a measurement
LONG = {"cpu": 1e14, "cuda": 1e16}  # operations of a run that is worth compiling for
FAILED = "compilation fails: "


@dataclass(frozen=True)
class Form:
    """How a network computes, and why."""

    precision: Precision
    compile: bool
    reason: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.precision}, compiled" if self.compile else self.precision

    def notes(self) -> list[str]:
        """What the user should know of the choice."""
        return [f"{self}: {self.reason}"] if self.reason else []


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
    """The fastest form of a network on this machine among those that the settings allow.

    Args:
        module: on the device; not changed.
        shape: (C, H, W) of an image.
        precision: of the experiment.
        compile_: of the experiment.
        batch: images in a step.
        images: how many the whole run trains on.
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
    worthwhile = compile_ == "auto" and (work or 0) * images > LONG[device.type]
    options = [compile_] if compile_ != "auto" else [False, True] if worthwhile else [False]
    forms = [Form(kind, option, reason) for option in options for kind in kinds]
    if len(forms) == 1:
        return forms[0]
    timed_images = max(2, min(batch, int(OPERATIONS / (work or 1e9))))
    key = _key(module, shape, forms, timed_images, device)
    if (cached := _read(key)) is not None:
        return cached
    chosen = _fastest(module, (timed_images, *shape), forms, device)
    if not chosen.reason.startswith(FAILED):
        _write(key, chosen)
    return chosen


def _operations(module: nn.Module, shape: Shape) -> int | None:
    """Operations of a training step per image, three forward passes; None where they cannot be counted."""
    try:
        return 6 * cost.multiply_adds(module, shape)
    except Exception:  # a user's network that reads values, say
        return None


def _fastest(module: nn.Module, shape: tuple[int, ...], forms: list[Form], device: torch.device) -> Form:
    """The fastest eager form, or its compiled form where that is faster still."""
    eager = [form for form in forms if not form.compile] or forms
    times = {form: step_seconds(module, shape, form, device) for form in eager}
    best = eager[0]
    for form in eager[1:]:
        if times[form] < GAIN * times[best]:
            best = form
    candidate = Form(best.precision, compile=True)
    if candidate in forms and candidate not in times:
        try:
            times[candidate] = step_seconds(module, shape, candidate, device)
        except Exception as error:  # whatever the compiler raises
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return Form(best.precision, compile=False, reason=f"{FAILED}{reason[:100]}")
        best = candidate if times[candidate] < GAIN * times[best] else best
    measured = ", ".join(f"{1e3 * seconds:.0f} ms in {form}" for form, seconds in times.items())
    return Form(best.precision, best.compile, f"a step of {shape[0]} images takes {measured}")


def step_seconds(
    module: nn.Module, shape: tuple[int, ...], form: Form, device: torch.device, seconds: float = 2.0
) -> float:
    """The median time of a forward and backward pass of a copy of `module`.

    Args:
        module: the network.
        shape: (N, C, H, W) of the batch.
        form: precision and compilation.
        device: where the network lies.
        seconds: the least total time to measure for, after warming up.
    """
    network = copy.deepcopy(module).train()
    forward = compiled(network) if form.compile else network
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        x = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        labels = torch.zeros(shape[0], dtype=torch.int64, device=device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=form.precision == "bf16"):
                logits = forward(x)
            F.cross_entropy(logits.float(), labels).backward()
            for parameter in network.parameters():
                parameter.grad = None

        step()  # compiles
        timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds).median


# ---------------------------------------------------------------- cached choices


def _key(module: nn.Module, shape: Shape, forms: list[Form], images: int, device: torch.device) -> str:
    here = environment(device)
    machine = [here[name] for name in ("torch", "cpu", "cpu_capability", "threads", "gpu", "cuda")]
    question = [
        str(module),
        shape,
        [str(form) for form in forms],
        images,
        acceleration.version.get()(),
        *machine,
    ]
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def _file(key: str) -> Path:
    return atomic.cache_folder("choices") / f"{key}.json"


def _read(key: str) -> Form | None:
    try:
        return Form(**json.loads(_file(key).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(key: str, form: Form) -> None:
    with contextlib.suppress(OSError, ResodeError):  # the cache may be read-only
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(_file(key), asdict(form))
