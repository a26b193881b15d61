"""Someone else's network with its chains of residual units replaced by dynamic blocks, in their places.

A unit's own `forward` is traced with its layers as they are (torch.fx). Where it returns `y + F(y)` or
`relu(y + F(y))` of its argument y, its branch F, without the sum, becomes the field of a block; everything
else of the network stays as it is.
"""

import contextlib
import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.fields import Field
from resode.inputs import Shape
from resode.mode import mode
from resode.models.dynamic import DynamicNet, Visit
from resode.models.repeated import find_units, managed_units
from resode.models.residual import ResidualNetwork
from resode.models.transitions import Stem, Transition
from resode.stages import Stage
from resode.statistics import running_statistics

SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)
RELUS: tuple[Any, ...] = (F.relu, F.relu_, torch.relu, torch.relu_)


def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """The logits of a network that returns them, or an object with `logits` as those of transformers.

    Raises:
        InputError: it returns something else.
    """
    result = net(images)
    logits = getattr(result, "logits", result)
    if not isinstance(logits, Tensor):
        raise InputError(f"the {type(net).__name__} returns a {type(result).__name__}, not logits")
    return logits


# ------------------------------------------------------------ the network


class LiftedNet(DynamicNet):
    """A network whose chains of units are dynamic blocks (`stages`), the rest as it was (`network`).

    It has no stem, connectors and head of its own, and no name for files.

    Args:
        network: someone else's; the block of a chain takes the place of its first unit, the others become
            identities. Not copied.
        stages: the specification of each block.
        places: the names of the units of each chain.
        in_channels: the channels of an image.
        classes: the number of logits.
        unnamed: why no file can hold it.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Iterable[Stage],
        places: Sequence[Sequence[str]],
        *,
        in_channels: int,
        classes: int,
        unnamed: str,
    ) -> None:
        nn.Module.__init__(self)
        self.network, self.places, self.unnamed = network, tuple(map(tuple, places)), unnamed
        self.in_channels, self.classes, self.first, self.last = in_channels, classes, None, None
        self.stem_specification, self.connector_specifications = Stem(in_channels), ()
        self.stages = nn.ModuleList(map(DynamicBlock, stages))
        for number, (first, *others) in enumerate(self.places):
            _put(network, first, _Place(self.stages, number))
            for name in others:
                _put(network, name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network, x)

    def walk(self, x: Tensor, visit: Visit) -> Tensor:
        with _visited_by(visit):
            return self.forward(x)

    def with_stages(
        self,
        stages: Iterable[Stage],
        *,
        stem: Stem | None = None,
        connector: Sequence[Transition] | None = None,
    ) -> "LiftedNet":
        """A new network with other stages and initial weights; everything else is a copy."""
        if stem is not None or connector is not None:
            raise InputError("a lifted network of another library has no stem and no connectors of resode")
        return LiftedNet(
            copy.deepcopy(self.network),
            stages,
            self.places,
            in_channels=self.in_channels,
            classes=self.classes,
            unnamed=self.unnamed,
        )

    def options(self) -> dict[str, Any]:
        """Raise `InputError`: no registered name stands for such a network.

        Raises:
            InputError: always, with the reason.
        """
        raise InputError(f"no file can hold this lifted network: {self.unnamed}; use it in Python")

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        sizes: list[tuple[int, int]] = []

        def visit(block: DynamicBlock, y: Tensor) -> Tensor:
            sizes.append((y.shape[2], y.shape[3]))
            last: Tensor = block(y)
            return last

        image = torch.zeros(1, self.in_channels, height, width).to(next(self.parameters()))
        with mode(self, training=False), torch.no_grad():
            self.walk(image, visit)
        return sizes


class _Place(nn.Module):
    """Calls one of the stages, which are registered elsewhere."""

    def __init__(self, stages: nn.ModuleList, number: int) -> None:
        super().__init__()
        self._stages, self._number = (stages,), number  # in a tuple: no submodule

    def forward(self, y: Tensor) -> Tensor:
        (stages,), visit = self._stages, _visit.get()
        block = stages[self._number]
        last: Tensor = block(y) if visit is None else visit(block, y)
        return last


_visit: ContextVar[Visit | None] = ContextVar("what passes the blocks of a lifted network", default=None)


@contextlib.contextmanager
def _visited_by(visit: Visit) -> Iterator[None]:
    """Context in which `visit` passes the blocks."""
    token = _visit.set(visit)
    try:
        yield
    finally:
        _visit.reset(token)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


# ------------------------------------------------------------ a unit's branch


@dataclass(frozen=True, eq=False, repr=False)
class Branch(Field):
    """F of a unit `y + F(y)` that someone else wrote, with its own layers.

    Args:
        unit: the name of its class.
        module: F; each control node is a copy.
        width: the channels of y.
    """

    unit: str
    module: nn.Module
    width: int

    def __deepcopy__(self, _: Any) -> "Branch":
        return self  # a value

    def __repr__(self) -> str:
        return f"Branch({self.unit})"

    @property
    def name(self) -> str:
        return f"branch of {self.unit}"

    @property
    def equation(self) -> str:
        return f"F(y) of {self.unit}, y + F(y)"

    def build(self, width: int) -> nn.Module:
        if width != self.width:
            raise InputError(f"{self.name}: has the width {self.width}, not {width}")
        return copy.deepcopy(self.module)


class _Tracer(fx.Tracer):
    """Traces a unit's own forward; its layers stay calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _NoStep(Exception):
    """Why a unit is no step of a scheme."""


def _branch(unit: nn.Module) -> tuple[str, fx.GraphModule]:
    """The scheme of which a unit is a step, and its branch F; its layers are shared.

    Raises:
        _NoStep: it does not return `y + F(y)` or `relu(y + F(y))`.
    """
    defaults = {
        name: p.default
        for name, p in inspect.signature(unit.forward).parameters.items()
        if p.default is not p.empty
    }
    try:
        graph = _Tracer().trace(unit, concrete_args=defaults or None)
    except Exception as error:  # whatever its code does with a tensor that has no values
        raise _NoStep(f"its forward depends on values ({(str(error).splitlines() or [''])[0]})") from None
    y, *_ = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    total = output.args[0]
    projected = isinstance(total, fx.Node) and _is_relu(total, unit)
    if projected:
        total = total.args[0]
    if not isinstance(total, fx.Node) or not _is_sum(total):
        raise _NoStep("it does not return y + F(y) or relu(y + F(y))")
    terms = [term for term in total.args if isinstance(term, fx.Node)]
    own = [term for term in terms if _through_identities(term, unit) is y]
    if len(own) != 1 or len(terms) != 2:
        raise _NoStep("its shortcut is no identity")
    (branch,) = (term for term in terms if term is not own[0])
    output.args = (branch,)
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op == "placeholder" and node is not y and not node.users:
            graph.erase_node(node)
    return "projected_euler" if projected else "euler", fx.GraphModule(unit, graph, "Branch")


def _is_relu(node: fx.Node, unit: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(unit.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (RELUS if node.op == "call_function" else ("relu", "relu_"))


def _is_sum(node: fx.Node) -> bool:
    known = SUMS if node.op == "call_function" else ("add", "add_") if node.op == "call_method" else ()
    return node.target in known and not node.kwargs and len(node.args) == 2


def _through_identities(node: fx.Node, unit: nn.Module) -> fx.Node:
    """The node whose value passes unchanged through `nn.Identity` and empty sequences."""
    while node.op == "call_module":
        module = unit.get_submodule(str(node.target))
        if not (isinstance(module, nn.Identity) or (type(module) is nn.Sequential and not len(module))):
            break
        (node,) = node.all_input_nodes
    return node


# ------------------------------------------------------------ finding the chains


@dataclass
class _Unit:
    """A unit that may be a step, and what one forward pass shows of it."""

    name: str
    scheme: str
    branch: fx.GraphModule
    calls: int = 0
    problem: str = ""
    given: Tensor | None = None
    result: Tensor | None = None
    version: int = 0
    kind: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        state = self.branch.state_dict()
        shapes = tuple((name, tensor.shape) for name, tensor in state.items())
        self.kind = self.name.rpartition(".")[0], self.scheme, str(self.branch), shapes

    def follows(self, other: "_Unit") -> bool:
        """Whether the same kind of unit takes the result of the other one, unchanged."""
        return (
            self.kind == other.kind
            and self.given is not None
            and self.given is other.result
            and self.shape == other.shape
        )

    @property
    def shape(self) -> torch.Size | None:
        """(N, C, H, W) of its argument."""
        return None if self.given is None else self.given.shape


def lifted_in_place(
    net: nn.Module, shape: Shape, classes: int, unnamed: str
) -> tuple[LiftedNet, dict[str, str]]:
    """A copy of a network with dynamic blocks in place of its chains, with initial weights in the blocks.

    Args:
        net: any network; unchanged.
        shape: (C, H, W) of images that it takes.
        classes: the number of its logits.
        unnamed: why no file can hold it.

    Returns:
        The network, and for each name of its `state_dict` that of the old tensor.

    Raises:
        InputError: there is no chain, with what keeps the first candidate from being one.
    """
    network = copy.deepcopy(net)
    for managed in managed_units(network):
        managed.set_gradient("stored")
    if isinstance(network, ResidualNetwork):
        network.set_gradient("stored")
    units, problems = _candidates(network)
    _observe(network, units, shape)
    problems |= {unit.name: unit.problem for unit in units if unit.problem}
    chains = _chains([unit for unit in units if not unit.problem])
    if not chains:
        name, problem = next(iter(problems.items()), ("", ""))
        why = f"{name}: {problem}" if name else (
            "it has no residual blocks (children of an nn.Sequential or nn.ModuleList whose forward adds)"
        )  # fmt: skip
        raise InputError(f"lift: the {type(net).__name__} has no unit that is a step of a scheme; {why}")
    places = [tuple(unit.name for unit in chain) for chain in chains]
    stages = [_stage(network, chain) for chain in chains]
    sources: dict[str, str] = {}
    for s, units_of_block in enumerate(chains):
        for j, unit in enumerate(units_of_block):
            statistics = running_statistics(unit.branch)
            for name in unit.branch.state_dict():
                part = "statistics" if name in statistics else "controls"
                sources[f"stages.{s}.{part}.{j}.{name}"] = f"{unit.name}.{name}"
    new = LiftedNet(network, stages, places, in_channels=shape[0], classes=classes, unnamed=unnamed)
    rest = {f"network.{name}": name for name in new.network.state_dict()}
    return new, {name: (sources | rest)[name] for name in new.state_dict()}


def _candidates(network: nn.Module) -> tuple[list[_Unit], dict[str, str]]:
    """The units that return y + F(y), in order, and for others why they are none."""
    if isinstance(network, ResidualNetwork):
        own = {module: name for name, module in network.named_modules()}
        names = [own[unit] for unit in network.units()]
    else:
        names = [name for chain in find_units(network) for name in chain.names]
    units: list[_Unit] = []
    problems: dict[str, str] = {}
    for name in names:
        try:
            units.append(_Unit(name, *_branch(network.get_submodule(name))))
        except _NoStep as error:
            problems[name] = str(error)
    return units, problems


def _observe(network: nn.Module, units: Sequence[_Unit], shape: Shape) -> None:
    """Run the network once and keep what each unit takes and returns."""

    def begin(unit: _Unit) -> Callable[..., None]:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            unit.calls += 1
            if unit.calls > 1:
                unit.problem = "is used twice in one forward pass"
            elif len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].ndim != 4:
                unit.problem = "is not called with one tensor (N, C, H, W) alone"
            else:
                unit.given, unit.version = args[0], args[0]._version

        return before

    def end(unit: _Unit) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, result: Any) -> None:
            if unit.given is None or unit.problem:
                return
            if unit.given._version != unit.version:
                unit.problem = "changes its argument in place"
            elif not isinstance(result, Tensor) or result.shape != unit.given.shape:
                unit.problem = "changes the width or the size of images"
            else:
                unit.result = result

        return after

    hooks = []
    for unit in units:
        module = network.get_submodule(unit.name)
        hooks.append(module.register_forward_pre_hook(begin(unit), with_kwargs=True))
        hooks.append(module.register_forward_hook(end(unit)))
    image = torch.zeros(1, *shape).to(next(network.parameters()))
    try:
        with mode(network, training=False), torch.no_grad():
            logits_of(network, image)
    finally:
        for hook in hooks:
            hook.remove()
    for unit in units:
        if not unit.calls:
            unit.problem = "is not used"


def _chains(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Units in a row, each of which takes what the one before it returns."""
    chains: list[list[_Unit]] = []
    for unit in units:
        if chains and unit.follows(chains[-1][-1]):
            chains[-1].append(unit)
        else:
            chains.append([unit])
    return chains


def _stage(network: nn.Module, chain: Sequence[_Unit]) -> Stage:
    first = chain[0]
    assert first.shape is not None
    kind = type(network.get_submodule(first.name)).__name__
    branch = Branch(kind, first.branch, first.shape[1])
    return Stage(first.shape[1], branch, first.scheme, len(chain), interpolation="constant")
