"""Twisting: convolutions of any network made to depend on the place, with nothing changed at first.

    K u  ->  T(u) = K u + X (Wx u) + Y (Wy u),        Wx = Wy = 0 at first

See `resode.operators.twist` for the operator and the ways in which Wx and Wy are tied. Of a dynamic block the
field is twisted, in all its 3x3 convolutions; a network of such blocks is built anew from its specifications,
which then say so.
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
from resode.blocks import DynamicBlock, dynamic_blocks
from resode.errors import InputError, nearest
from resode.fields import ConvolutionalField, Twist
from resode.models.dynamic import DynamicNet
from resode.models.transitions import Identity
from resode.operators.twist import TwistConv2d, check_twist
from resode.stages import Stage

Predicate = Callable[[str, nn.Conv2d], bool]
Where = Predicate | str | int | Sequence[str | int] | None
M = TypeVar("M", bound=nn.Module)
_STAGE = re.compile(r"(?:^|\.)(?:layers?|stages?|blocks?)[._]?(\d+)(?=\.|$)")
_JOINT = re.compile(r"(?:stem|connectors\.\d+)\.conv[12]?")  # of a DynamicNet: what a specification names


def twist(
    model: nn.Module,
    where: Where = None,
    *,
    tie: str = "conformal",
    degree: int = 1,
    coordinates: str = "centred",
    form: str = "auto",
) -> nn.Module:
    """A copy of a network with its convolutions twisted; its weights are kept and its outputs do not change.

    (Bit for bit where `form` is "separate" and no field has an adjoint; otherwise within rounding.)

    Args:
        model: any network; it stays as it is.
        where: which convolutions; every 3x3 one where left out. Stages (`1`, `[1, 2]`, `"1,2"`: numbers after
            `layer`, `stages` or `blocks` in the names of modules, counted from 1), names or patterns of names
            (`"layer1.*.conv2"`), or a function of the name and the convolution. A dynamic block is one thing,
            by its own name (`"stages.0"`), and no function is asked of it.
        tie: free, odd, conformal, saddle or mixed.
        degree: of the polynomials.
        coordinates: centred, per-axis or published.
        form: how it is computed; see `TwistConv2d`.

    Raises:
        InputError: nothing to twist, a stage or a name that is not there, an impossible option.
    """
    check_twist(tie, degree, coordinates, form)
    specification = Twist(tie, degree, coordinates, form)
    chosen = chosen_convolutions(model, where)
    _refuse_hooks(model, chosen)
    if isinstance(model, DynamicNet):
        return _rebuilt(model, chosen, specification)
    twisted = copy.deepcopy(model)
    made: dict[int, nn.Module] = {}
    for name in chosen:
        plain = twisted.get_submodule(name)
        if id(plain) not in made:
            made[id(plain)] = _twisted(plain, specification)
        if not name:
            return made[id(plain)]
        parent, _, child = name.rpartition(".")
        setattr(twisted.get_submodule(parent), child, made[id(plain)])
    return twisted


def _refuse_hooks(model: nn.Module, chosen: Iterable[str]) -> None:
    """What a hook does to a convolution (spectral_norm, pruning) would be lost."""
    for name in chosen:
        module = model.get_submodule(name)
        if module._forward_hooks or module._forward_pre_hooks:
            raise InputError(f"{name}: has hooks, which a twist would lose; remove them first")


def _twisted(plain: nn.Module, twist: Twist) -> nn.Module:
    """A convolution or a dynamic block, twisted, with the same weights."""
    if isinstance(plain, DynamicBlock):
        return _carried(plain, lambda: DynamicBlock(_twisted_stage(plain.stage, twist)))
    assert isinstance(plain, nn.Conv2d)
    return TwistConv2d.of(plain, **asdict(twist))


def _twisted_stage(stage: Stage, twist: Twist) -> Stage:
    assert isinstance(stage.field, ConvolutionalField)
    return replace(stage, field=replace(stage.field, twist=twist))


def _rebuilt(net: DynamicNet, chosen: Sequence[str], twist: Twist) -> DynamicNet:
    """The network that the specifications make, those that are chosen twisted, with the same weights."""
    joints = _joints(net, chosen)
    stages = [
        _twisted_stage(block.stage, twist) if f"stages.{i}" in chosen else block.stage
        for i, block in enumerate(net.blocks())
    ]
    stem = replace(net.stem_specification, twist=twist) if "stem" in joints else net.stem_specification
    connector = [
        replace(c, twist=twist) if f"connectors.{i}" in joints and not isinstance(c, Identity) else c
        for i, c in enumerate(net.connector_specifications)
    ]
    return _carried(net, lambda: net.with_stages(stages, stem=stem, connector=connector))


def _joints(net: DynamicNet, chosen: Sequence[str]) -> set[str]:
    """The joints that are chosen, each with all its convolutions."""
    joints = {name.rpartition(".")[0] for name in chosen if _JOINT.fullmatch(name)}
    for name in _known(net):
        joint = name.rpartition(".")[0]
        if joint in joints and name not in chosen:
            raise InputError(f"{joint}: is twisted as a whole or not at all; name '{joint}.*'")
    return joints


def _carried(old: M, make: Callable[[], M]) -> M:
    """A new module with the tensors of the old, its modes, and what was frozen; new numbers stay zero."""
    with torch.random.fork_rng(devices=[]):
        new = make()
    reference = next(old.parameters())
    new.to(dtype=reference.dtype, device=reference.device)
    tensors = {name: tensor.detach().clone() for name, tensor in old.state_dict().items()}
    lacking, unknown = new.load_state_dict(tensors, strict=False, assign=True)
    if unknown or not lacking or not all(name.endswith(".twist") for name in lacking):
        kind = type(old).__name__
        raise InputError(f"nothing to twist: the {kind} is not what its specification makes; create it anew")
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
        InputError: there are none; a stage or a name that is not there.
    """
    known = _known(model)
    if isinstance(where, str | int):
        where = [part.strip() for part in where.split(",")] if isinstance(where, str) else [where]
    if where is None:
        _refuse_fields(model)
        found = [name for name, module in known.items() if _is_3x3(module)]
    elif callable(where):
        found = [name for name, m in known.items() if isinstance(m, nn.Conv2d) and where(name, m)]
    else:
        found = _listed(known, _stages_in(model), where)
    if not found:
        if not known:
            raise InputError(f"nothing to twist: {type(model).__name__} has no torch.nn.Conv2d that is plain")
        raise InputError(
            f"nothing to twist: none of the {len(known)} convolutions is chosen "
            f"(the first are {', '.join(list(known)[:3])})"
        )
    return found


Twistable = nn.Conv2d | DynamicBlock


def _known(model: nn.Module) -> dict[str, Twistable]:
    """What can be twisted, by name: plain convolutions, and dynamic blocks as a whole."""
    of_net = isinstance(model, DynamicNet)
    known: dict[str, Twistable] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DynamicBlock):
            field = module.stage.field
            if isinstance(field, ConvolutionalField) and field.twist is None:
                known[name] = module
        elif _is_plain(module) and (not of_net or _JOINT.fullmatch(name)):
            known[name] = module
    return known


def _is_3x3(module: Twistable) -> bool:
    return isinstance(module, DynamicBlock) or module.kernel_size == (3, 3)


def _refuse_fields(model: nn.Module) -> None:
    """A field of the user's own may hold convolutions that no option twists; joints alone are no default."""
    for block in dynamic_blocks(model):
        if not isinstance(block.stage.field, ConvolutionalField):
            name = block.stage.field.name
            raise InputError(f"nothing to twist: the field {name} cannot be; name what shall be (where=...)")


def _listed(
    known: Mapping[str, Twistable], stages: Mapping[str, int], where: Iterable[str | int]
) -> list[str]:
    """The convolutions of size 3x3 in some stages, and those whose names match."""
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
    """The stage, counted from 1, of each name that tells one."""
    numbers = {name: int(match[1]) for name in names if (match := _STAGE.search(name))}
    first = min(numbers.values(), default=1)
    return {name: number + (first == 0) for name, number in numbers.items()}


def _stages_in(model: nn.Module) -> dict[str, int]:
    """The stages of the convolutions and dynamic blocks of a network, by name, twisted or not."""
    modules = model.named_modules(remove_duplicate=False)
    return stages_of(name for name, module in modules if isinstance(module, Twistable))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution that computes as `torch.nn.Conv2d` does."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and not parametrize.is_parametrized(module)
        and not isinstance(module, nn.LazyConv2d)
    )


@dataclass(frozen=True)
class Twisted:
    """One twisted convolution of a network."""

    name: str
    stage: int | None
    layer: TwistConv2d

    @property
    def added(self) -> int:
        """The parameters that the twist added."""
        return self.layer.twist.numel()


def twisted_convolutions(model: nn.Module) -> list[Twisted]:
    """The twisted convolutions of a network, each once, in order."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, TwistConv2d)}
    stages = _stages_in(model)
    return [Twisted(name, stages.get(name), layer) for name, layer in found.items()]


def explain(before: nn.Module, after: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """What a twist replaced and what it added, a line each.

    Args:
        before: the network.
        after: what `twist` made of it.
        shape: (C, H, W) of an image.
    """
    known = {item.name for item in twisted_convolutions(before)}
    made = [item for item in twisted_convolutions(after) if item.name not in known]
    blocks = [name for name, module in after.named_modules() if isinstance(module, DynamicBlock)]
    lines = []
    for (name, stage), items in groupby(made, lambda item: (_owner(item.name, blocks), item.stage)):
        each = list(items)
        where = "" if stage is None else f"stage {stage}  "
        added = sum(item.added for item in each)
        lines.append(f"{where}{name}  {each[0].layer.tie}, {added:,} parameters added")
    work = [cost.multiply_adds(network, shape) for network in (before, after)]
    counts = [cost.parameters(network) for network in (before, after)]
    lines.append(f"parameters     {counts[0]:,} -> {counts[1]:,} ({counts[1] / counts[0] - 1:+.1%})")
    lines.append(
        f"multiply-adds  {work[0] / 1e6:,.1f} M -> {work[1] / 1e6:,.1f} M an image "
        f"({work[1] / work[0]:.2f} times)"
    )
    return lines


def _owner(name: str, blocks: Sequence[str]) -> str:
    """The dynamic block that holds a convolution; the convolution itself where there is none."""
    return next((block for block in blocks if name.startswith(f"{block}.")), name)
