"""Twisting: convolutions of any network made to depend on the place, with nothing changed at first.

    K u  ->  T(u) = K u + X (Wx u) + Y (Wy u),        Wx = Wy = 0 at first

See `resode.operators.twist` for the operator and the ways in which Wx and Wy are tied.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize

from resode import cost
from resode.blocks import dynamic_blocks
from resode.errors import InputError, nearest
from resode.operators.twist import TwistConv2d, check_twist

Predicate = Callable[[str, nn.Conv2d], bool]
Where = Predicate | str | int | Sequence[str | int] | None
_STAGE = re.compile(r"(?:^|\.)(?:layers?|stages?|blocks?)[._]?(\d+)(?=\.|$)")


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

    (Bit for bit where `form` is "separate"; otherwise within rounding.)

    Args:
        model: any network; it stays as it is.
        where: which convolutions; every 3x3 one where left out. Stages (`1`, `[1, 2]`, `"1,2"`: numbers after
            `layer`, `stages` or `blocks` in the names of modules, counted from 1), names or patterns of names
            (`"layer1.*.conv2"`), or a function of the name and the convolution.
        tie: free, odd, conformal, saddle or mixed.
        degree: of the polynomials.
        coordinates: centred, per-axis or published.
        form: how it is computed; see `TwistConv2d`.

    Raises:
        InputError: nothing to twist, a stage or a name that is not there, an impossible option.
    """
    check_twist(tie, degree, coordinates, form)
    options = {"tie": tie, "degree": degree, "coordinates": coordinates, "form": form}
    chosen = chosen_convolutions(model, where)
    twisted = copy.deepcopy(model)
    made: dict[int, TwistConv2d] = {}
    for name in chosen:
        convolution = twisted.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        if id(convolution) not in made:
            made[id(convolution)] = TwistConv2d.of(convolution, **options)
        parent, _, child = name.rpartition(".")
        setattr(twisted.get_submodule(parent), child, made[id(convolution)])
    return twisted


def chosen_convolutions(model: nn.Module, where: Where = None) -> list[str]:
    """The names of the convolutions that `twist` replaces.

    Raises:
        InputError: there are none; a stage or a name that is not there.
    """
    known = {
        name: module for name, module in model.named_modules(remove_duplicate=False) if _is_plain(module)
    }
    if isinstance(where, str | int):
        where = [part.strip() for part in where.split(",")] if isinstance(where, str) else [where]
    if where is None:
        _refuse_blocks(model)
        found = [name for name, convolution in known.items() if convolution.kernel_size == (3, 3)]
    elif callable(where):
        found = [name for name, convolution in known.items() if where(name, convolution)]
    else:
        found = _listed(known, where)
    if not found:
        if not known:
            raise InputError(f"nothing to twist: {type(model).__name__} has no torch.nn.Conv2d")
        raise InputError(
            f"nothing to twist: none of the {len(known)} convolutions is chosen "
            f"(the first are {', '.join(list(known)[:3])})"
        )
    return found


def _refuse_blocks(model: nn.Module) -> None:
    """The fields of dynamic blocks have a convolution of their own; their joints alone are no default."""
    if dynamic_blocks(model):
        raise InputError(
            "nothing to twist: the fields of dynamic blocks cannot be twisted; name the joints that shall be "
            "(where=['stem.*', 'connectors.*'])"
        )


def _listed(known: Mapping[str, nn.Conv2d], where: Iterable[str | int]) -> list[str]:
    """The convolutions of size 3x3 in some stages, and those whose names match."""
    stages = stages_of(known)
    chosen: set[str] = set()
    for item in where:
        if isinstance(item, int) or item.isdigit():
            matching = {n for n in known if stages.get(n) == int(item) and known[n].kernel_size == (3, 3)}
            have = ", ".join(map(str, sorted(set(stages.values())))) or "no stages"
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


def _is_plain(module: nn.Module) -> bool:
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
    stages = stages_of(name for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    return [Twisted(name, stages.get(name), layer) for name, layer in found.items()]


def explain(before: nn.Module, after: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """What a twist replaced and what it added, a line each.

    Args:
        before: the network.
        after: what `twist` made of it.
        shape: (C, H, W) of an image.
    """
    known = {item.name for item in twisted_convolutions(before)}
    lines = []
    for item in twisted_convolutions(after):
        if item.name not in known:
            where = "" if item.stage is None else f"stage {item.stage}  "
            lines.append(f"{where}{item.name}  {item.layer.tie}, {item.added:,} parameters added")
    work = [cost.multiply_adds(network, shape) for network in (before, after)]
    counts = [cost.parameters(network) for network in (before, after)]
    lines.append(f"parameters     {counts[0]:,} -> {counts[1]:,} ({counts[1] / counts[0] - 1:+.1%})")
    lines.append(
        f"multiply-adds  {work[0] / 1e6:,.1f} M -> {work[1] / 1e6:,.1f} M an image "
        f"({work[1] / work[0]:.2f} times)"
    )
    return lines
