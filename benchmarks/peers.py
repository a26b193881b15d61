"""Other libraries beside resode: the same functions, state, batch and threads; seconds, bytes and exactness.

    make peers        (installs torchdyn, memcnn, momentumnet and Lightning into .peers, for this alone)
    python benchmarks/peers.py [--peers .peers] [--dynamicblocks CHECKOUT] [--akamaster CHECKOUT]
                               [--only CONTEST] [--rounds 7] [--json]

Each contest builds every form from copies of the same functions, and steps them in turn within one process:
a forward and a backward pass of a linear loss. A figure is the median over rounds of the time, and of its
ratio to the plain form in the same round. Bytes are the rise of the process's peak resident memory in a step,
in a fresh process for each form, gradients of parameters already allocated. The error is that of the gradient
with respect to the state and all parameters in single precision, |g - g'| / |g'|, where g' is in double
precision from plain backpropagation through the same scheme.

The DynamicBlocks toolbox and akamaster's ResNets take part as whole networks, from a checkout of each; ours
has their weights, and the error is that of the gradient with respect to the images. In the last contest, of
training loops, a form is one step of ResNet-20 on CIFAR-10 with random crops and flips. A peer that does not
import, or fails, is a row with the reason.
"""

import argparse
import copy
import ctypes
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resode
from resode import DynamicBlock, Stage, interop
from resode.integrators import RK4, Adaptive, Coupling, Integrator, Momentum
from resode.training import Experiment
from resode.training.loop.step import Position, Trainer
from resode.training.process.device import place
from resode.training.records.environment import environment
from resode.training.setup.preparation import prepare

WIDTH, SIZE, BATCH, STEPS, UNITS = 64, 16, 64, 8, 12
GAMMA, TOLERANCE = 0.9, 1e-4
Functions = Sequence[nn.Module]


@dataclass(frozen=True)
class Form:
    """A way to compute the same thing.

    Args:
        module: from the functions to a module of the state.
        exact: the form whose plain backpropagation in double precision is the truth (default: its own).
    """

    module: Callable[[Functions], nn.Module]
    exact: Callable[[Functions], nn.Module] | None = None


@dataclass(frozen=True)
class Contest:
    """Forms of one computation, the one that others are compared with first.

    Args:
        functions: makes the functions that each form is built from.
        forms: by name.
        batch: the number of states.
        shape: (channels, height, width) of a state.
        outputs: the shape of a result (default: that of a state).
        parameters: whether forms hold the functions themselves, so that their gradients can be compared.
    """

    functions: Callable[[], Functions]
    forms: Mapping[str, Form]
    batch: int = BATCH
    shape: tuple[int, int, int] = (WIDTH, SIZE, SIZE)
    outputs: tuple[int, ...] | None = None
    parameters: bool = True


class Call(nn.Module):
    """A function of the state and of modules, as a module."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], functions: Any) -> None:
        super().__init__()
        self.functions = functions if isinstance(functions, nn.Module) else nn.ModuleList(functions)
        self.function = function

    def forward(self, y: Tensor) -> Tensor:
        return self.function(self.functions, y)


# ---------------------------------------------------------------- functions


def smooth() -> Functions:
    """One smooth field."""
    conv = partial(nn.Conv2d, WIDTH, WIDTH, 3, padding=1)
    return [nn.Sequential(conv(), nn.Tanh(), conv())]


def residual(width: int, count: int) -> Functions:
    """Residual functions as in RevNet: norm, ReLU, convolution, twice."""

    def half() -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]

    return [nn.Sequential(*half(), *half()) for _ in range(count)]


# ---------------------------------------------------------------- plain forms


def rk4(functions: Functions, y: Tensor) -> Tensor:
    """The classical method over [0, 1]."""
    f, h = functions[0], 1 / STEPS
    for _ in range(STEPS):
        k1 = f(y)
        k2 = f(y + h / 2 * k1)
        k3 = f(y + h / 2 * k2)
        k4 = f(y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


def coupling(functions: Functions, x: Tensor) -> Tensor:
    """The coupling y = y + F(z), z = z + G(y)."""
    y, z = x.chunk(2, 1)
    for f, g in _pairs(functions):
        y = y + f(z)
        z = z + g(y)
    return torch.cat((y, z), 1)


def _pairs(functions: Functions) -> Iterator[tuple[nn.Module, nn.Module]]:
    listed = list(functions)
    return zip(listed[::2], listed[1::2], strict=True)


def momentum(functions: Functions, y: Tensor) -> Tensor:
    """The momentum ResNet v = g v + (1 - g) f(y), y = y + v."""
    v = torch.zeros_like(y)
    for f in functions:
        v = GAMMA * v + (1 - GAMMA) * f(y)
        y = y + v
    return y


def plain(function: Callable[[Any, Tensor], Tensor]) -> Form:
    """A loop of one's own."""
    return Form(lambda functions: Call(function, functions))


# ---------------------------------------------------------------- resode


def ours(integrator: Integrator, gradient: str, steps: float = STEPS, end: float = 1.0) -> Form:
    """A dynamic block whose control nodes hold the functions."""

    def block(functions: Functions, method: str = gradient) -> nn.Module:
        modules = iter(functions)
        states = resode.TimeGrid.uniform(int(steps), end)
        controls = [0] if len(functions) == 1 else None
        stage = Stage(WIDTH, lambda _: next(modules), integrator, states, controls, gradient=method)
        return DynamicBlock(stage)

    return Form(block, partial(block, method="stored"))


# ---------------------------------------------------------------- peers


class Field(nn.Module):
    """f(t, y) without t."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, _: Tensor, y: Tensor) -> Any:
        return self.function(y)


def torchdiffeq(method: str, *, adjoint: bool, **options: Any) -> Form:
    """`odeint` or `odeint_adjoint`; its `rk4` is the 3/8 rule."""

    def module(functions: Functions, adjoint: bool = adjoint) -> nn.Module:
        import torchdiffeq

        field = Field(functions[0])
        solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        span = torch.tensor([0.0, 1.0], dtype=next(functions[0].parameters()).dtype)
        return Call(lambda f, y: solve(f, y, span.to(y.dtype), method=method, **options)[-1], field)

    return Form(module, partial(module, adjoint=False))


def torchdyn(solver: str, sensitivity: str, steps: int) -> Form:
    """`NeuralODE` over a given number of steps."""

    def module(functions: Functions, sensitivity: str = sensitivity) -> nn.Module:
        from torchdyn.core import NeuralODE

        span = torch.linspace(0, 1, steps + 1)
        net = NeuralODE(
            functions[0], solver=solver, sensitivity=sensitivity, solver_adjoint=solver, atol=TOLERANCE,
            rtol=TOLERANCE, atol_adjoint=TOLERANCE, rtol_adjoint=TOLERANCE, return_t_eval=False,
        )  # fmt: skip
        return Call(lambda f, y: f(y, span.to(y.dtype))[-1], net)

    return Form(module, partial(module, sensitivity="autograd"))


def memcnn(functions: Functions) -> nn.Module:
    """Additive couplings whose inputs are freed and computed again."""
    from memcnn import AdditiveCoupling, InvertibleModuleWrapper

    return nn.Sequential(
        *(InvertibleModuleWrapper(AdditiveCoupling(f, g), keep_input=False) for f, g in _pairs(functions))
    )


def momentumnet(functions: Functions) -> nn.Module:
    """A momentum network that is run backwards exactly."""
    from momentumnet import MomentumNet

    return MomentumNet(list(functions), gamma=GAMMA, use_backprop=False)  # type: ignore[no-any-return]  # untyped


# ---------------------------------------------------------------- contests

CONTESTS: dict[str, Contest] = {
    f"RK4, {STEPS} steps, backpropagation": Contest(smooth, {
        "plain": plain(rk4),
        "torchdiffeq": torchdiffeq("rk4", adjoint=False, options={"step_size": 1 / STEPS}),
        "torchdyn": torchdyn("rk4", "autograd", STEPS),
        "resode": ours(RK4(), "stored"),
    }),
    f"RK4, {STEPS} steps, little memory": Contest(smooth, {
        "plain": plain(rk4),
        "torchdiffeq, adjoint": torchdiffeq("rk4", adjoint=True, options={"step_size": 1 / STEPS}),
        "torchdyn, adjoint": torchdyn("rk4", "adjoint", STEPS),
        "resode, adjoint": ours(RK4(), "adjoint"),
        "resode, checkpointed": ours(RK4(), "checkpointed"),
    }),
    f"dopri5, tolerances {TOLERANCE:g}": Contest(smooth, {
        "torchdiffeq": torchdiffeq("dopri5", adjoint=False, rtol=TOLERANCE, atol=TOLERANCE),
        "torchdiffeq, adjoint": torchdiffeq("dopri5", adjoint=True, rtol=TOLERANCE, atol=TOLERANCE),
        "torchdyn, adjoint": torchdyn("dopri5", "adjoint", 1),
        "resode": ours(Adaptive("dopri5", TOLERANCE, TOLERANCE), "stored", 1),
        "resode, adjoint": ours(Adaptive("dopri5", TOLERANCE, TOLERANCE), "adjoint", 1),
    }),
    f"coupling (RevNet), {UNITS} units": Contest(partial(residual, WIDTH // 2, 2 * UNITS), {
        "plain": plain(coupling),
        "memcnn": Form(memcnn, plain(coupling).module),
        "resode, reversible": ours(Coupling(), "reversible", UNITS, UNITS),
        "resode, stored": ours(Coupling(), "stored", UNITS, UNITS),
    }),
    f"momentum ResNet, {UNITS} units": Contest(partial(residual, WIDTH, UNITS), {
        "plain": plain(momentum),
        "momentumnet": Form(momentumnet, plain(momentum).module),
        "resode, reversible": ours(Momentum(GAMMA), "reversible", UNITS, UNITS),
    }),
}  # fmt: skip


# ---------------------------------------------------------------- whole networks from checkouts


def take_part(peers: str, dynamicblocks: str | None, akamaster: str | None) -> None:
    """Make the peers importable, and add contests of the checkouts that are given; in each process."""
    warnings.simplefilter("ignore")
    given = {dynamicblocks: _toolbox(), akamaster: _akamaster()}
    for checkout, contest in given.items():
        if checkout:
            sys.path.insert(0, str(Path(checkout).resolve()))
            CONTESTS.update(contest)
    sys.path.append(str(Path(peers).resolve()))


def _toolbox() -> dict[str, Contest]:
    grid, widths = [0, 1, 2, 3, 4], [16, 32, 64, 64]

    def network() -> Functions:
        # imported by its module, not used by the network
        unused = ("torchvision", "torchvision.transforms", "matplotlib", "matplotlib.pyplot")
        with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in unused}):
            from RKNet import RKNet

        return [RKNet(grid, grid, 3, 10, widths)]

    def converted(functions: Functions) -> nn.Module:
        state = functions[0].state_dict()
        net = interop.from_dynamicblocks(
            state, scheme="rk4", layer="parabolic", states=grid, controls=grid, widths=widths
        )
        return place(net, torch.device("cpu"))

    forms = {"DynamicBlocks": Form(lambda functions: functions[0]), "resode": Form(converted)}
    contest = Contest(network, forms, 125, (3, 32, 32), (10,), parameters=False)
    return {"DynamicBlocks' default network": contest}


def _akamaster() -> dict[str, Contest]:
    def network() -> Functions:
        from resnet import resnet20

        return [resnet20()]

    def converted(functions: Functions) -> nn.Module:
        with tempfile.NamedTemporaryFile(suffix=".th") as file:
            torch.save(functions[0].state_dict(), file.name)
            net = interop.convert("akamaster", file.name, model="he_resnet20").module
        return place(net.to(next(functions[0].parameters()).dtype), torch.device("cpu"))

    forms = {"akamaster": Form(lambda functions: functions[0]), "resode": Form(converted)}
    contest = Contest(network, forms, 128, (3, 32, 32), (10,), parameters=False)
    return {"akamaster's ResNet-20": contest}


# ---------------------------------------------------------------- measuring


def built(contest: Contest, name: str, *, exact: bool = False) -> tuple[nn.Module, list[nn.Parameter]]:
    """A form with its own copy of the functions, and their parameters in order."""
    torch.manual_seed(0)
    functions = [place(f, torch.device("cpu")) for f in contest.functions()]
    functions = [f.double() if exact else f for f in functions]
    form = contest.forms[name]
    module = (form.exact if exact and form.exact else form.module)(functions)
    return module.train(), [p for f in functions for p in f.parameters()]


def inputs(contest: Contest, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A state, and the coefficients of a linear loss."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(contest.batch, *contest.shape, generator=generator)
    v = torch.randn(contest.batch, *(contest.outputs or contest.shape), generator=generator)
    return x.to(dtype, memory_format=torch.channels_last).requires_grad_(), v.to(dtype)


def step(module: nn.Module, x: Tensor, v: Tensor) -> None:
    """A forward and a backward pass; invertible modules may free the tensor that they are given."""
    (module(x * 1) * v).sum().backward()


def gradient(contest: Contest, name: str, *, exact: bool = False) -> Tensor:
    """With respect to the state and all parameters."""
    module, parameters = built(contest, name, exact=exact)
    x, v = inputs(contest, torch.float64 if exact else torch.float32)
    step(module, x, v)
    found = [p.grad for p in (x, *(parameters if contest.parameters else ()))]
    return torch.cat([g.double().flatten() for g in found if g is not None])


def error(contest: Contest, name: str) -> float:
    """|g - g'| / |g'|."""
    truth = gradient(contest, name, exact=True)
    return float((gradient(contest, name) - truth).norm() / truth.norm())


def rise(contest: str, name: str) -> int:
    """Rise of this process's peak resident memory in a step, in bytes, once gradients are allocated."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back to the system at once
    torch.set_num_threads(1)
    module, _ = built(CONTESTS[contest], name)
    x, v = inputs(CONTESTS[contest])
    step(module, x, v)
    libc.malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    step(module, x, v)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def seconds(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time one step of each form in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, one in steps.items():
            begin = time.perf_counter()
            one()
            if number:
                times[name].append(time.perf_counter() - begin)
    return times


def summary(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median seconds of each form, and of its ratio to the first form's, with quartiles."""
    first = next(iter(times.values()))
    found = {}
    for name, own in times.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(own, first, strict=True)], n=4)
        found[name] = {
            "seconds": round(statistics.median(own), 4), "ratio": round(middle, 3),
            "lower_quartile": round(low, 3), "upper_quartile": round(high, 3),
        }  # fmt: skip
    return found


def measure(name: str, rounds: int, peers: tuple[str, str | None, str | None]) -> list[dict[str, Any]]:
    """A row for each form of a contest; `peers` as in `take_part`."""
    contest = CONTESTS[name]
    rows: list[dict[str, Any]] = []
    steps: dict[str, Callable[[], object]] = {}
    spawn = multiprocessing.get_context("spawn")
    for form in contest.forms:
        row: dict[str, Any] = {"contest": name, "form": form}
        rows.append(row)
        try:
            row["gradient_error"] = error(contest, form)
            with ProcessPoolExecutor(1, spawn, partial(take_part, *peers)) as pool:
                row["bytes"] = pool.submit(rise, name, form).result()
        except Exception as reason:  # a peer's, of any kind
            row["failed"] = f"{type(reason).__name__}: {reason}"[:200]
            continue
        module, _ = built(contest, form)
        steps[form] = partial(step, module, *inputs(contest))
    found = summary(seconds(steps, rounds))
    return [{**row, **found.get(row["form"], {})} for row in rows]


# ---------------------------------------------------------------- training loops


LOOPS = "training step of ResNet-20"


class Batches(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images cropped and flipped one at a time, as a map-style data set does."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = F.pad(images, (4, 4, 4, 4))
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        top, left, flip = (int(torch.randint(n, ())) for n in (9, 9, 2))
        image = self.images[i, :, top : top + 32, left : left + 32].float() / 255
        return (image.flip(2) if flip else image) - 0.45, self.labels[i]


def loops(recipe: str = "he2016/resnet20") -> dict[str, Callable[[], object]]:
    """A step of each training loop: one's own, Lightning's, and ours (eager, in single precision)."""
    trainer = Trainer(
        prepare(Experiment.from_recipe(recipe, {"data.source": "cifar10", "precision": "fp32"}))
    )

    def our_step() -> None:
        if trainer.position.step >= trainer.steps - 1:
            trainer.position = Position(epoch=trainer.position.epoch + 1)
        trainer.step()

    train = resode.load_data("cifar10").train
    images = torch.from_numpy(train.pixels.copy())  # out of the read-only mapping
    data = Batches(images.permute(0, 3, 1, 2), torch.from_numpy(train.labels))

    def batches() -> Iterator[Any]:
        while True:
            yield from torch.utils.data.DataLoader(data, 128, shuffle=True, num_workers=1, drop_last=True)

    network, source = copy.deepcopy(trainer.module), batches()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def own_step() -> None:
        images, labels = next(source)
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"a loop with a DataLoader": own_step, "resode": our_step, **lightning(trainer.module, batches)}


def lightning(module: nn.Module, batches: Callable[[], Iterator[Any]]) -> dict[str, Callable[[], object]]:
    """A step of Lightning's trainer, which runs in a thread of its own between two barriers."""
    try:
        import pytorch_lightning as pl
    except Exception as reason:  # a peer's, of any kind
        print(f"Lightning: {type(reason).__name__}: {reason}", file=sys.stderr)
        return {}
    turn = threading.Barrier(2)

    class Wrapped(pl.LightningModule):  # type: ignore[misc]  # untyped
        """The network, with Lightning's automatic optimization."""

        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(module)

        def training_step(self, batch: Any, number: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.network(images), labels)

        def on_train_batch_end(self, *_: object) -> None:
            turn.wait()
            turn.wait()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    class Endless(torch.utils.data.IterableDataset[Any]):
        """The same batches."""

        def __iter__(self) -> Iterator[Any]:
            return batches()

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    fit = pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet).fit
    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    threading.Thread(target=fit, args=(Wrapped(), loader), daemon=True).start()
    begun = [False]

    def one() -> None:
        if begun[0]:
            turn.wait()  # let it go on from the end of its last step
        begun[0] = True
        turn.wait()  # until the end of this one

    return {"Lightning with a DataLoader": one}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'contest':<36}{'form':<28}{'ms':>8}{'ratio':>7}{'MB':>8}{'error':>9}"]
    for r in rows:
        head = f"{r['contest']:<36}{r['form']:<28}"
        if "failed" in r:
            lines.append(f"{head} {r['failed']}")
            continue
        size = f"{r['bytes'] / 1e6:>8.1f}" if "bytes" in r else f"{'':>8}"
        exact = f"{r['gradient_error']:>9.1e}" if "gradient_error" in r else ""
        lines.append(f"{head}{1e3 * r['seconds']:>8.1f}{r['ratio']:>7.2f}{size}{exact}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default=".peers", help="the folder into which peers are installed")
    parser.add_argument("--dynamicblocks", help="a checkout of EmoryMLIP/DynamicBlocks")
    parser.add_argument("--akamaster", help="a checkout of akamaster/pytorch_resnet_cifar10")
    parser.add_argument("--only", default="", help="contests whose name contains this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    peers = options.peers, options.dynamicblocks, options.akamaster
    take_part(*peers)
    rows = [row for name in CONTESTS if options.only in name for row in measure(name, options.rounds, peers)]
    if options.only in LOOPS:
        found = summary(seconds(loops(), 3 * options.rounds))
        rows += [{"contest": LOOPS, "form": name, **row} for name, row in found.items()]
    own = {"peers": options.peers, "rounds": options.rounds}
    record = {
        "command": " ".join(
            ["python benchmarks/peers.py", *(f"--{key} {value}" for key, value in own.items())]
        ),
        "rows": rows,
        "versions": {d.name: d.version for d in metadata.distributions(path=[options.peers])},
        "environment": environment(torch.device("cpu")),
    }
    print(json.dumps(record, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
