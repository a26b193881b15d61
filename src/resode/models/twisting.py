"""Twisting: replace convolutions of a network by position-dependent ones with the same outputs at first.

    K u  ->  T(u) = K u + X (Wx u) + Y (Wy u),        Wx = Wy = 0 at first

See `resode.operators.twist` for the operator and for the ties of Wx and Wy. In a dynamic block the field is
twisted, in all its 3x3 convolutions. A `DynamicNet` is rebuilt from specifications that include the twist.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TypeGuard, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from resode import cost
from resode.blocks import DynamicBlock, adaptive_solvers, dynamic_blocks
from resode.errors import InputError, nearest
from resode.fields import ConvolutionalField, Twist
from resode.models.dynamic import DynamicNet
from resode.models.lifted import LiftedNet
from resode.models.transitions import Connector, Transition, UnitConnector
from resode.operators.twist import TwistConv2d, check_twist
from resode.stages import Stage

Predicate = Callable[[str, nn.Conv2d], bool]
Where = Predicate | str | int | Sequence[str | int] | None
M = TypeVar("M", bound=nn.Module)
_STAGE = re.compile(r"(?:^|\.)(?:layers?|stages?|blocks?)[._]?(\d+)(?=\.|$)")
_TRANSITION = re.compile(
    r"(?:stem|connectors\.\d+)\.conv[12]?"
)  # convolutions of a DynamicNet outside blocks


def twist(
    model: nn.Module,
    where: Where = None,
    *,
    tie: str = "conformal",
    degree: int = 1,
    coordinates: str = "centred",
    form: str = "auto",
) -> nn.Module:
    """Copy a network and twist its convolutions; weights are kept and outputs do not change.

    (Bit for bit if `form` is "separate" and no field has an adjoint; otherwise within rounding.)

    Args:
        model: any network; unchanged.
        where: which convolutions (default: all 3x3 ones). Stages (`1`, `[1, 2]`, `"1,2"`: the number after
            `layer`, `stages` or `blocks` in the names of modules, counted from 1), names or patterns of names
            (`"layer1.*.conv2"`), or a function of the name and the convolution. A dynamic block is chosen as
            a whole, by its own name (`"stages.0"`) or stage, not by a function.
        tie: free, odd, conformal, saddle or mixed.
        degree: of the polynomials.
        coordinates: centred, per-axis or published.
        form: how it is computed; see `TwistConv2d`.

    Raises:
        InputError: nothing to twist, an unknown stage or name, an invalid option.
    """
    check_twist(tie, degree, coordinates, form)
    if isinstance(model, LiftedNet):
        raise InputError("a lifted network of another library cannot be twisted: twist it, then lift it")
    specification = Twist(tie, degree, coordinates, form)
    chosen = chosen_convolutions(model, where)
    _refuse_hooks(model, chosen)
    if isinstance(model, DynamicNet):
        return _rebuilt(model, chosen, specification)
    twisted = copy.deepcopy(model)
    replaced: dict[int, nn.Module] = {}
    for name in chosen:
        plain = twisted.get_submodule(name)
        if id(plain) not in replaced:
            replaced[id(plain)] = _twisted(plain, specification)
        if not name:
            return replaced[id(plain)]
        parent, _, child = name.rpartition(".")
        setattr(twisted.get_submodule(parent), child, replaced[id(plain)])
    return twisted


def _refuse_hooks(model: nn.Module, chosen: Iterable[str]) -> None:
    """Raise `InputError` for convolutions with hooks (spectral_norm, pruning), which a twist would drop."""
    for name in chosen:
        module = model.get_submodule(name)
        if module._forward_hooks or module._forward_pre_hooks:
            raise InputError(f"{name}: has hooks, which a twist would drop; remove them first")


def _twisted(plain: nn.Module, twist: Twist) -> nn.Module:
    """The twisted form of a convolution or a dynamic block, with the same weights."""
    if isinstance(plain, DynamicBlock):
        return _with_weights_of(plain, lambda: DynamicBlock(_twisted_stage(plain.stage, twist)))
    assert isinstance(plain, nn.Conv2d)
    return TwistConv2d.of(plain, **asdict(twist))


def _twisted_stage(stage: Stage, twist: Twist) -> Stage:
    assert isinstance(stage.field, ConvolutionalField)
    return replace(stage, field=replace(stage.field, twist=twist))


def _twisted_connector(connector: Transition, twist: Twist) -> Transition:
    if not isinstance(connector, Connector | UnitConnector):
        raise InputError(f"connector {type(connector).__name__}: has no twist; leave it out of `where`")
    return replace(connector, twist=twist)


def _rebuilt(net: DynamicNet, chosen: Sequence[str], twist: Twist) -> DynamicNet:
    """The network rebuilt from its specifications, the chosen ones twisted, with the same weights."""
    transitions = _transitions(net, chosen)
    stages = [
        _twisted_stage(block.stage, twist) if f"stages.{i}" in chosen else block.stage
        for i, block in enumerate(net.blocks())
    ]
    stem = replace(net.stem_specification, twist=twist) if "stem" in transitions else net.stem_specification
    connector = [
        _twisted_connector(c, twist) if f"connectors.{i}" in transitions else c
        for i, c in enumerate(net.connector_specifications)
    ]
    return _with_weights_of(net, lambda: net.with_stages(stages, stem=stem, connector=connector))


def _transitions(net: DynamicNet, chosen: Sequence[str]) -> set[str]:
    """The chosen stem and connectors, each with all its convolutions."""
    transitions = {name.rpartition(".")[0] for name in chosen if _TRANSITION.fullmatch(name)}
    for name in _twistable(net):
        transition = name.rpartition(".")[0]
        if transition in transitions and name not in chosen:
            raise InputError(f"{transition}: is twisted as a whole or not at all; name '{transition}.*'")
    return transitions


def _with_weights_of(old: M, make: Callable[[], M]) -> M:
    """A new module with the tensors, modes and `requires_grad` of the old one; its twists are zero."""
    with torch.random.fork_rng(devices=[]):
        new = make()
    reference = next(old.parameters())
    new.to(dtype=reference.dtype, device=reference.device)
    tensors = {name: tensor.detach().clone() for name, tensor in old.state_dict().items()}
    missing, unknown = new.load_state_dict(tensors, strict=False, assign=True)
    if unknown or not missing or not all(name.endswith(".twist") for name in missing):
        kind = type(old).__name__
        raise InputError(
            f"the {kind} was edited and differs from its specification: create it again, then twist"
        )
    known, modules = dict(old.named_parameters()), dict(old.named_modules())
    for name, parameter in new.named_parameters():
        source = name if name in known else name.removesuffix("twist") + "weight"
        parameter.requires_grad_(known[source].requires_grad)
    for name, module in new.named_modules():
        module.training = modules[name].training
    return new


def chosen_convolutions(model: nn.Module, where: Where = None) -> list[str]:
    """The names of the convolutions that `twist` replaces.

    Raises:
        InputError: there are none, or an unknown stage or name.
    """
    known = _twistable(model)
    if isinstance(where, str | int):
        where = [item.strip() for item in where.split(",")] if isinstance(where, str) else [where]
    if where is None:
        _refuse_fields(model)
        chosen = [name for name, module in known.items() if _is_3x3(module)]
    elif callable(where):
        chosen = [name for name, m in known.items() if isinstance(m, nn.Conv2d) and where(name, m)]
    else:
        chosen = _listed(known, _stages_in(model), where)
    if not chosen:
        if not known:
            raise InputError(f"nothing to twist: {type(model).__name__} has no plain torch.nn.Conv2d")
        raise InputError(
            f"nothing to twist: none of the {len(known)} convolutions is chosen "
            f"(the first are {', '.join(list(known)[:3])})"
        )
    return chosen


Twistable = nn.Conv2d | DynamicBlock


def _twistable(model: nn.Module) -> dict[str, Twistable]:
    """The plain convolutions outside dynamic blocks, and the dynamic blocks, by name."""
    of_net = isinstance(model, DynamicNet)
    known: dict[str, Twistable] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DynamicBlock):
            field = module.stage.field
            if isinstance(field, ConvolutionalField) and field.twist is None:
                known[name] = module
        elif _is_plain(module) and (not of_net or _TRANSITION.fullmatch(name)):
            known[name] = module
    return known


def _is_3x3(module: Twistable) -> bool:
    return isinstance(module, DynamicBlock) or module.kernel_size == (3, 3)


def _refuse_fields(model: nn.Module) -> None:
    """Raise `InputError` if a field cannot be twisted: by default, all blocks have to be."""
    for block in dynamic_blocks(model):
        if not isinstance(block.stage.field, ConvolutionalField):
            name = block.stage.field.name
            raise InputError(
                f"nothing to twist: the field {name} cannot be twisted; name convolutions (where, --where)"
            )


def _listed(
    known: Mapping[str, Twistable], stages: Mapping[str, int], where: Iterable[str | int]
) -> list[str]:
    """The names of 3x3 convolutions in the listed stages, and of those that match a listed pattern."""
    chosen: set[str] = set()
    for item in where:
        if isinstance(item, int) or item.isdecimal():
            matching = {n for n, m in known.items() if stages.get(n) == int(item) and _is_3x3(m)}
            have = ", ".join(map(str, sorted({stages[n] for n in known if n in stages}))) or "no stages"
            problem = f"no 3x3 convolution in stage {item} (there are {have})"
        else:
            matching = {name for name in known if fnmatchcase(name, item)}
            problem = f"no convolution is named '{item}'{nearest(item, tuple(known))}"
        if not matching:
            raise InputError(f"nothing to twist: {problem}")
        chosen |= matching
    return [name for name in known if name in chosen]


def stages_of(names: Iterable[str]) -> dict[str, int]:
    """The stage, counted from 1, of each name that contains one."""
    numbers = {name: int(match[1]) for name in names if (match := _STAGE.search(name))}
    first = min(numbers.values(), default=1)
    return {name: number + (first == 0) for name, number in numbers.items()}


def _stages_in(model: nn.Module) -> dict[str, int]:
    """The stage of each convolution and dynamic block of a network, by name."""
    modules = model.named_modules(remove_duplicate=False)
    return stages_of(name for name, module in modules if isinstance(module, Twistable))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution that computes what `torch.nn.Conv2d` does."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and not parametrize.is_parametrized(module)
        and not isinstance(module, nn.LazyConv2d)
    )


@dataclass(frozen=True)
class Twisted:
    """One twisted convolution of a network.

    Args:
        name: of the module.
        stage: counted from 1; None if the name contains no stage.
        layer: the module.
    """

    name: str
    stage: int | None
    layer: TwistConv2d

    @property
    def added(self) -> int:
        """The number of parameters that the twist added."""
        return self.layer.twist.numel()


def twisted_convolutions(model: nn.Module) -> list[Twisted]:
    """The twisted convolutions of a network, each once, in order."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, TwistConv2d)}
    stages = _stages_in(model)
    return [Twisted(name, stages.get(name), layer) for name, layer in layers.items()]


def explain(before: nn.Module, after: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """List the twisted convolutions and the added parameters and multiply-adds, one line each.

    Args:
        before: the network.
        after: the result of `twist`.
        shape: (C, H, W) of an image.
    """
    known = {item.name for item in twisted_convolutions(before)}
    added = [item for item in twisted_convolutions(after) if item.name not in known]
    blocks = [name for name, module in after.named_modules() if isinstance(module, DynamicBlock)]
    lines = []
    for (name, stage), items in groupby(added, lambda item: (_owner(item.name, blocks), item.stage)):
        group = list(items)
        where = "" if stage is None else f"stage {stage}  "
        parameters = sum(item.added for item in group)
        lines.append(f"{where}{name}  {group[0].layer.tie}, {parameters:,} parameters added")
    work = [cost.multiply_adds(network, shape) for network in (before, after)]
    counts = [cost.parameters(network) for network in (before, after)]
    lines.append(f"parameters     {counts[0]:,} -> {counts[1]:,} ({counts[1] / counts[0] - 1:+.1%})")
    lines.append(
        f"multiply-adds  {work[0] / 1e6:,.1f} M -> {work[1] / 1e6:,.1f} M an image "
        f"({work[1] / work[0]:.2f} times)"
        + (f"; one evaluation counted for {solvers}" if (solvers := adaptive_solvers(after)) else "")
    )
    return lines


def _owner(name: str, blocks: Sequence[str]) -> str:
    """The name of the dynamic block that holds a convolution; its own name if there is none."""
    return next((block for block in blocks if name.startswith(f"{block}.")), name)
