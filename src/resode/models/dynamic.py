"""Networks of dynamic blocks: stem, blocks of different widths with connectors between them, head.

    x -> stem -> (connector) -> [y' = f(theta(t), y) on stage 1] -> connector -> [stage 2] -> ...
      -> (connector) -> head

Every stage has its own field, integrator, grids and gradient method.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from resode import cost
from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.inputs import check_images, check_shape
from resode.models.catalogue import CIFAR, models
from resode.models.layouts import size_mistakes
from resode.models.transitions import (
    Connector,
    Head,
    Stem,
    Transition,
    connector_of,
    connectors,
    to_data,
)
from resode.models.units import PreactivationUnit
from resode.registry import Entry, instance
from resode.stages import Stage

T = TypeVar("T")
Visit = Callable[..., Tensor]  # (block, first state, difference to the state before) -> last state


class DynamicNet(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, classes).

        time = TimeGrid.uniform(steps=4)
        stages = [Stage(32, Parabolic(norm="tv"), RK4(), states=time), Stage(64, "parabolic", "rk4", time)]
        net = DynamicNet(stem=3, stages=stages, classes=10)

    Args:
        stages: the specification of each block.
        stem: a `Stem`, or the number of channels of an image.
        connector: between two stages (with `first` also before the first one, with `last` after the last
            one); one for all, or a list.
        first: the width after the stem, where a connector leads to the first stage (default: the stem has
            the width of the first stage).
        last: the width after the last stage, reached by a connector without pooling (default: the head
            follows the last stage directly).
        head: a `Head`.
        classes: the number of logits.

    Raises:
        InputError: invalid options, or stages that do not fit together; the message names the stage.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        *,
        stem: int | Stem = 3,
        connector: Transition | Sequence[Transition] = Connector(),  # noqa: B008
        first: int | None = None,
        last: int | None = None,
        head: Head = Head(),  # noqa: B008
        classes: int = 10,
    ) -> None:
        super().__init__()
        if isinstance(stages, Stage | str | Mapping) or not isinstance(stages, Iterable):
            raise InputError(f"stages {stages!r}: a list of Stage is needed, one for each block")
        stages = tuple(stages)
        if not isinstance(stem, int):
            stem = instance(stem, Stem, "stem", "a Stem, or the channels of an image")
        self.stem_specification = stem if isinstance(stem, Stem) else Stem(stem)
        self.head_specification = instance(head, Head, "head", "a Head")
        self.first, self.last = first, last
        own = {name: width for name, width in (("first", first), ("last", last)) if width is not None}
        self.in_channels = self.stem_specification.in_channels
        mistakes = size_mistakes([1], 1, classes=classes, in_channels=self.in_channels, **own)
        if not stages:
            mistakes.append("a dynamic network needs at least one stage")
        mistakes += [
            f"stage {number}: a Stage is needed, not {stage!r}; resode.create('dynamic') takes plain data"
            for number, stage in enumerate(stages, start=1)
            if not isinstance(stage, Stage)
        ]
        if mistakes:
            raise InputError(*mistakes)
        widths = [w for w in (first, *(stage.width for stage in stages), last) if w is not None]
        between = len(widths) - 1
        self.connector_specifications: tuple[Transition, ...] = (
            tuple(map(connector_of, connector))
            if isinstance(connector, Sequence) and not isinstance(connector, str)
            else (connector_of(connector),) * between
        )
        if len(self.connector_specifications) != between:
            raise InputError(
                f"{len(self.connector_specifications)} connectors for {len(widths)} widths: give {between}, "
                "or one for all"
            )
        self.stem = self.stem_specification.build(widths[0])
        self.stages = nn.ModuleList(_each(stages, DynamicBlock))
        self.connectors = nn.ModuleList(
            specification.build(before, after, last=last is not None and number == between - 1)
            for number, (specification, before, after) in enumerate(
                zip(self.connector_specifications, widths, widths[1:], strict=False)
            )
        )
        self.head = head.build(widths[-1], classes)
        self.classes = classes
        self._moving = self._moving_connectors(stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.walk(x, _pass)

    def walk(self, x: Tensor, visit: Visit) -> Tensor:
        """The logits, with `visit` in place of the forward pass of each block, in order.

            net.walk(images, lambda block, y, *difference: block(y, *difference))  # net(images)

        Args:
            x: images (N, C, H, W).
            visit: takes a block, its first state and, for a moving scheme, the difference to the state
                before; returns the last state.
        """
        first, *after = self.between()
        y, *difference = _connected(first, self.stem(x), self._moving[0])  # (N, width, H, W)
        for block, connector, moving in zip(self.stages, after, self._moving[1:], strict=True):
            y = visit(block, y, *difference)
            y, *difference = _connected(connector, y, moving)  # (N, next width, H / 2, W / 2)
        logits: Tensor = self.head(y)
        return logits

    def between(self) -> tuple[nn.Module | None, ...]:
        """The connector before the first stage and those after each stage; None where there is none."""
        before = () if self.first is not None else (None,)
        after = () if self.last is not None else (None,)
        return (*before, *self.connectors, *after)

    def _moving_connectors(self, stages: Sequence[Stage]) -> tuple[bool, ...]:
        """For each place of `between`, whether a moving scheme follows it."""
        for number, (stage, connector) in enumerate(zip(stages, self.between(), strict=False), start=1):
            if not stage.integrator.moving or isinstance(connector, PreactivationUnit):
                continue
            needs = f"stage {number}: {stage.integrator.name} with first=moving continues a unit"
            if connector is None:
                raise InputError(f"{needs}, and there is none before the first stage: take first=euler")
            raise InputError(f"{needs}: take connector=unit before it, pre-activated, or first=euler")
        return (*(stage.integrator.moving for stage in stages), False)

    def blocks(self) -> Iterator[DynamicBlock]:
        """The dynamic blocks, in order."""
        for block in self.stages:
            assert isinstance(block, DynamicBlock)
            yield block

    def trajectory(self, x: Tensor) -> tuple[tuple[float, ...], tuple[Tensor, ...]]:
        """Times and states of all blocks in sequence, times continuing from block to block.

        The first state of a block is its input, at the end time of the block before it.

        Raises:
            InputError: x is no input of the network.
        """
        check_images(self, x, channels=self.in_channels)
        times: list[float] = []
        states: list[Tensor] = []

        def visit(block: DynamicBlock, y: Tensor, *difference: Tensor) -> Tensor:
            nodes, along = block.trajectory(y, *difference)
            clock = times[-1] if times else 0.0
            times.extend([clock + t - nodes[0] for t in nodes])
            states.extend(along)
            return along[-1]

        self.walk(x, visit)
        return tuple(times), tuple(states)

    def with_stages(
        self,
        stages: Iterable[Stage],
        *,
        stem: Stem | None = None,
        connector: Sequence[Transition] | None = None,
    ) -> "DynamicNet":
        """A new network with other stages and initial weights; everything else is the same.

        Args:
            stages: the specification of each block.
            stem: the new stem (default: as before).
            connector: the new connectors (default: as before).
        """
        return DynamicNet(
            stages,
            stem=self.stem_specification if stem is None else stem,
            connector=self.connector_specifications if connector is None else connector,
            first=self.first,
            last=self.last,
            head=self.head_specification,
            classes=self.classes,
        )

    # ------------------------------------------------------------ description

    def options(self) -> dict[str, Any]:
        """Options for `resode.create("dynamic", ...)` that build the same network, as plain data."""
        first = self.connector_specifications[:1]
        all_equal = all(c == first[0] for c in self.connector_specifications)
        data: dict[str, Any] = {"stages": [block.stage.to_data() for block in self.blocks()]}
        stem = to_data(self.stem_specification)
        in_channels = stem.pop("in_channels", 3)
        if stem:
            data["stem"] = stem
        if (first and first != (Connector(),)) or not all_equal:
            described = [connectors.describe(c) for c in self.connector_specifications]
            data["connector"] = described[0] if all_equal else described
        for name, width in (("first", self.first), ("last", self.last)):
            if width is not None:
                data[name] = width
        if to_data(self.head_specification):
            data["head"] = to_data(self.head_specification)
        return {**data, "classes": self.classes, "in_channels": in_channels}

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the states of each stage, for images of this size."""
        sizes = [(height, width)]
        before = self.first is not None
        for connector in self.connector_specifications[: len(self.stages) - 1 + before]:
            sizes.append((connector.size(sizes[-1][0]), connector.size(sizes[-1][1])))
        return sizes[before:]

    def warnings(self, height: int = 32, width: int = 32) -> list[str]:
        """What to know before training on images of this size, one line each."""
        lines = []
        for number, (block, size) in enumerate(zip(self.blocks(), self.sizes(height, width), strict=True)):
            lines += [f"stage {number + 1}: {line}" for line in block.warnings(*size)]
        return lines

    def explain(self, shape: tuple[int, int, int] | None = None, batch: int = 1) -> str:
        """Equation, scheme, grids, evaluations, parameters, multiply-adds and memory of each block.

        Args:
            shape: (C, H, W) of an image (default: 32x32).
            batch: the batch size for the memory of a training step.
        """
        own = self.in_channels
        channels, height, width = (own, 32, 32) if shape is None else check_shape(shape, own)
        if size_mistakes([batch], 1):
            raise InputError(f"batch {batch!r}: a positive integer is needed")
        title = (
            f"{type(self).__name__}, {cost.parameters(self):,} parameters, "
            f"images {channels}x{height}x{width} to {self.classes} classes"
        )
        lines = [title]
        for number, (block, size) in enumerate(zip(self.blocks(), self.sizes(height, width), strict=True)):
            lines.append(f"  stage {number + 1}")
            lines += [f"    {label:<14} {text}" for label, text in block.explain(*size, batch)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        try:
            return self.explain()
        except RuntimeError:  # a field that takes images of another size alone
            return super().__repr__()


def _pass(block: nn.Module, y: Tensor, *difference: Tensor) -> Tensor:
    last: Tensor = block(y, *difference)
    return last


def _connected(connector: nn.Module | None, y: Tensor, moving: bool) -> tuple[Tensor, ...]:
    """The state after a connector and, before a moving scheme, its difference to the one before."""
    if connector is None:
        return (y,)
    if not moving:
        return (connector(y),)
    assert isinstance(connector, PreactivationUnit)
    return connector.state_and_difference(y)


def _each(values: Sequence[Any], make: Callable[[Any], T]) -> list[T]:
    """Apply `make` to each stage; an `InputError` lists the mistakes of all stages."""
    results, mistakes = [], []
    for number, value in enumerate(values):
        try:
            results.append(make(value))
        except InputError as error:
            mistakes += [f"stage {number + 1}: {message}" for message in error.messages]
    if mistakes:
        raise InputError(*mistakes)
    return results


@models.register("dynamic", summary="any network of dynamic blocks, with its stages written out", shape=CIFAR)
def dynamic(
    *,
    stages: Sequence[Mapping[str, Any] | Stage],
    stem: Mapping[str, Any] | None = None,
    connector: Any = "layer",
    first: int | None = None,
    last: int | None = None,
    head: Mapping[str, Any] | None = None,
    classes: int = 10,
    in_channels: int = 3,
) -> DynamicNet:
    """A network of dynamic blocks from plain data (YAML); arguments as for `DynamicNet`.

    Raises:
        InputError: invalid options; lists the mistakes of all stages.
    """
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise InputError(f"stages is a list of mappings, one for each stage, not {stages!r}")
    if isinstance(stem, Mapping) and "in_channels" in stem:
        raise InputError("in_channels is an option of the network, not of its stem")
    return DynamicNet(
        _each(stages, lambda stage: stage if isinstance(stage, Stage) else _from_data(Stage, stage, "stage")),
        stem=replace(_from_data(Stem, stem or {}, "stem"), in_channels=in_channels),
        connector=connector,
        first=first,
        last=last,
        head=_from_data(Head, head or {}, "head"),
        classes=classes,
    )


def _from_data(kind: Any, data: Mapping[str, Any], what: str) -> Any:
    """A specification from plain data; an `InputError` lists unknown and missing keys."""
    if not isinstance(data, Mapping):
        raise InputError(f"a {what} is a mapping, not {data!r}")
    mistakes: list[str] = []
    try:
        Entry(what, kind).check(data)
    except InputError as error:
        mistakes += error.messages
    missing = [
        item.name
        for item in fields(kind)
        if item.default is MISSING and item.default_factory is MISSING and item.name not in data
    ]
    if missing:
        mistakes.append(f"a {what} needs {', '.join(missing)}")
    if mistakes:
        raise InputError(*mistakes)
    return kind(**data)
