"""Form: precision and compilation of a training step; `auto` is resolved by timing steps of the network.

The plain form (fp32, eager) is timed first; another one is chosen only where it is a tenth faster. Before,
a step on a few images: a form that takes twice as long there is timed no further, since bf16 is ten times as
slow on a processor without it. A GPU that computes in bf16 does so without timing. Compilation takes minutes,
so it is tried only where a run is long enough to gain them back. Results are cached for each network and
machine.
"""

import contextlib
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from resode import acceleration, atomic, cost
from resode.errors import ResodeError
from resode.gradients import unwatched
from resode.memory import Shape
from resode.progress import report
from resode.training.process.device import Precision
from resode.training.records.environment import environment
from resode.training.setup.execution import compiled

GAIN = 0.9  # largest time of a chosen form, in that of the plain form
SETTLED = 2.0  # a form that takes this many times as long for a few images is not timed any further
OPERATIONS = 2e10  # largest number of operations in a step that is timed
PROBED = 2e9  # and in one of a few images
SHORT = 1e12  # operations of a run that takes less time than a measurement
LONG = {"cpu": 1e14, "cuda": 1e16}  # operations of a run that is worth compiling for
TIMING = "timing steps in fp32 and bf16"
COMPILING = "compiling the network and timing its steps"
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
    chosen = _fastest(module, (timed_images, *shape), _few_images(module, shape, timed_images), forms, device)
    if not chosen.reason.startswith(FAILED):
        _write(key, chosen)
    return chosen


def _operations(module: nn.Module, shape: Shape) -> int | None:
    """Operations of a training step per image, three forward passes; None where they cannot be counted."""
    try:
        return 6 * cost.multiply_adds(module, shape)
    except Exception:  # a user's network that reads values, say
        return None


def _few_images(module: nn.Module, shape: Shape, images: int) -> tuple[int, ...]:
    """The shape of a batch of at most `PROBED` operations; two small images where whole ones take more."""
    work = _operations(module, shape) or 1e9
    while 2 * work > PROBED and min(shape[1:]) >= 32:  # in smaller images overhead hides the arithmetic
        smaller = (shape[0], shape[1] // 2, shape[2] // 2)
        if (less := _operations(module, smaller)) is None:  # it takes images of one size
            break
        shape, work = smaller, less
    return (max(2, min(images, int(PROBED / work))), *shape)


def _fastest(
    module: nn.Module, shape: tuple[int, ...], few: tuple[int, ...], forms: list[Form], device: torch.device
) -> Form:
    """The fastest eager form, or its compiled form where that is faster still.

    Args:
        module: the network.
        shape: (N, C, H, W) of the batch that is timed.
        few: the same of a smaller one, which shows whether a form is far slower than the plain one.
        forms: those allowed.
        device: where the network lies.
    """
    eager = [form for form in forms if not form.compile] or forms
    best, times, measured = eager[0], {}, []
    slow = _far_slower(module, few, eager, device) if len(eager) > 1 else {}
    for form, ratio in slow.items():
        measured.append(f"a step of {few[0]} images takes {ratio:.1f} times as long in {form} as in {best}")
    rest = [form for form in eager if form not in slow]
    if len(rest) > 1:
        for place, form in enumerate(rest):
            report(TIMING, place / len(rest))
            times[form] = step_seconds(module, shape, form, device)
            best = form if times[form] < GAIN * times[best] else best
        report(TIMING, 1)
    candidate = Form(best.precision, compile=True)
    if candidate in forms and candidate not in eager:
        try:
            times |= _compiled_seconds(
                module, shape, [f for f in (best, candidate) if f not in times], device
            )
        except Exception as error:  # whatever the compiler raises
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return Form(best.precision, compile=False, reason=f"{FAILED}{reason[:100]}")
        best = candidate if times[candidate] < GAIN * times[best] else best
    if times:
        steps = ", ".join(f"{1e3 * seconds:.0f} ms in {form}" for form, seconds in times.items())
        measured.append(f"a step of {shape[0]} images takes {steps}")
    return Form(best.precision, best.compile, "; ".join(measured))


def _far_slower(
    module: nn.Module, shape: tuple[int, ...], forms: list[Form], device: torch.device
) -> dict[Form, float]:
    """The forms that take `SETTLED` times as long as the first one in a step of a few images, and how many.

    None is compiled for this.
    """
    seconds: list[float] = []
    for place, form in enumerate(forms):
        report(TIMING, place / (len(forms) + 1))
        seconds.append(probe_seconds(module, shape, Form(form.precision, compile=False), device))
    ratios = {form: each / seconds[0] for form, each in zip(forms[1:], seconds[1:], strict=True)}
    slow = {form: ratio for form, ratio in ratios.items() if ratio >= SETTLED}
    if len(slow) == len(ratios):
        report(TIMING, 1)
    return slow


def _compiled_seconds(
    module: nn.Module, shape: tuple[int, ...], forms: list[Form], device: torch.device
) -> dict[Form, float]:
    """Seconds of a step in the compiled form, and in the eager one where it was not needed before."""
    times = {}
    for place, form in enumerate(forms):
        report(COMPILING, place / len(forms))
        times[form] = step_seconds(module, shape, form, device)
    report(COMPILING, 1)
    return times


@contextlib.contextmanager
def _steps(
    module: nn.Module, shape: tuple[int, ...], form: Form, device: torch.device
) -> Iterator[Callable[[], None]]:
    """A forward and backward pass of a copy of `module` on random images, as a function to call.

    The random state afterwards is the one before.
    """
    network = copy.deepcopy(module).train()
    forward = compiled(network) if form.compile else network
    with torch.random.fork_rng([device] if device.type == "cuda" else []), unwatched():
        x = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        labels = torch.zeros(shape[0], dtype=torch.int64, device=device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=form.precision == "bf16"):
                logits = forward(x)
            F.cross_entropy(logits.float(), labels).backward()
            for parameter in network.parameters():
                parameter.grad = None

        yield step


def probe_seconds(module: nn.Module, shape: tuple[int, ...], form: Form, device: torch.device) -> float:
    """The least time of up to three steps, as many as a second allows; the arguments of `step_seconds`."""
    with _steps(module, shape, form, device) as step:
        return least_seconds(step, time.perf_counter)


def least_seconds(step: Callable[[], None], clock: Callable[[], float], enough: float = 1.0) -> float:
    """The least time of up to three calls; none is begun once `enough` seconds have passed."""
    begin = clock()
    seconds: list[float] = []
    while len(seconds) < 3 and (not seconds or clock() - begin < enough):
        started = clock()
        step()
        seconds.append(clock() - started)
    return min(seconds)


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
    with _steps(module, shape, form, device) as step:
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
