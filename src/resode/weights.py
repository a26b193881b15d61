"""Weights: one safetensors file = tensors + the model's specification + its preprocessing.

The specification (a registered name and options) rebuilds the module, the tensors fill it, the
preprocessing turns images into its input. Specification, preprocessing and where the weights come from are
the *card*: JSON under the key `resode` of the file's metadata, with a format version. Nothing in a file is
executed.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from resode import atomic
from resode.errors import InputError, IntegrityError, ResodeError
from resode.models import create

FORMAT = 1  # of the card; a reader takes this version and all before
KEY = "resode"


@dataclass(frozen=True)
class Specification:
    """A registered model and its options: what rebuilds the module, without its numbers.

    Args:
        name: as `resode list models` prints it.
        options: what `resode.create` takes beside the name; anything JSON can hold.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"the name of a model is a string, not {self.name!r}")
        object.__setattr__(self, "options", _as_json(self.options, f"the options of {self.name}"))

    def build(self) -> nn.Module:
        """A new module with initial weights.

        Raises:
            InputError: the name is not registered, or does not take these options.
        """
        return create(self.name, **self.options)


@dataclass(frozen=True)
class Preprocessing:
    """Images to the input of a network: x <- (x - mean) / std, channel by channel, of x in [0, 1].

    Args:
        mean: of each channel.
        std: of each channel.
        size: height and width of the images.
        channels: 1 (grey) or 3 (red, green, blue).
        classes: the names of the classes, in the order of the logits.
        dtype: of the result: that of the network. `load` sets it; the card does not hold it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    channels: int
    classes: tuple[str, ...]
    dtype: torch.dtype = field(default=torch.float32, compare=False)

    def __post_init__(self) -> None:
        for name, kind in (("mean", float), ("std", float), ("size", int), ("classes", str)):
            values = getattr(self, name)
            if isinstance(values, str):
                raise InputError(f"preprocessing: {name} is a list, not {values!r}")
            object.__setattr__(self, name, tuple(kind(value) for value in values))
        object.__setattr__(self, "channels", int(self.channels))
        if not len(self.mean) == len(self.std) == self.channels:
            raise InputError(f"preprocessing: mean and std need {self.channels} numbers each, one a channel")
        if not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            raise InputError("preprocessing: mean has to be finite, std finite and positive")
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"preprocessing: size {self.size} is no height and width")

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or floating point in [0, 1], to the network's input (N, C, H, W).

        Raises:
            InputError: another shape or dtype.
        """
        if images.ndim != 4 or images.shape[1:] != (self.channels, *self.size):
            wanted = ", ".join(map(str, ("N", self.channels, *self.size)))
            raise InputError(f"images of shape {tuple(images.shape)}: this model takes ({wanted})")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"images of {images.dtype}: uint8 or floating point in [0, 1] is needed")
        scale = 255 if images.dtype == torch.uint8 else 1
        x = images.to(torch.promote_types(self.dtype, torch.float32)) / scale
        mean, std = x.new_tensor(self.mean)[:, None, None], x.new_tensor(self.std)[:, None, None]
        return ((x - mean) / std).to(self.dtype)


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself.

    Args:
        specification: rebuilds the module; None for a module that the user brought.
        preprocessing: images to the module's input.
        training: where the weights come from (recipe, seed, errors, ...); anything JSON can hold.
        format: the version of the card.
    """

    specification: Specification | None
    preprocessing: Preprocessing
    training: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "training", _as_json(self.training, "the card's training record"))

    def of_changed(self, specification: Specification, change: str, text: str) -> "Card":
        """The card of a network made from this one; what was measured of this one is told as that.

        Args:
            specification: rebuilds the new network.
            change: what was done, a key of the training record.
            text: how.
        """
        told = dict(self.training)
        error = told.pop("test_error", None)
        told.pop("test_samples", None)
        before = "" if error is None else f"; before, its test error was {error:.2f} %"
        return replace(self, specification=specification, training={**told, change: text + before})

    def to_json(self) -> str:
        """The card as JSON."""
        values = asdict(self)
        del values["preprocessing"]["dtype"]
        return json.dumps(values, sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """Read what `to_json` wrote.

        Raises:
            InputError: a newer version wrote it.
            IntegrityError: nothing of the kind wrote it.
        """
        try:
            values = dict(json.loads(text))
            version = int(values["format"])
            if version <= FORMAT:
                specification = values.pop("specification")
                specification = None if specification is None else Specification(**specification)
                return cls(specification, Preprocessing(**values.pop("preprocessing")), **values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise IntegrityError(f"its card is malformed ({type(error).__name__}: {error})") from None
        raise InputError(f"its card has format {version}, this resode reads {FORMAT}: upgrade resode")


if TYPE_CHECKING:

    class Loaded(nn.Module):
        """What `load` returns: a module with two plain attributes more (a type for checkers only)."""

        card: Card
        preprocessing: Preprocessing

else:
    Loaded = nn.Module


def save(module: nn.Module, path: str | PathLike[str], card: Card) -> None:
    """Write tensors and card to one file, durably: the old file stays until the new one is whole.

    The same module and card give the same bytes. A tensor that the module holds under two names is written
    under the first.

    Raises:
        ResourceError: the disk is full or read-only; the old file is as it was.
        InputError: a tensor is on the meta device and has no numbers.
    """
    own = module.state_dict(keep_vars=True)
    first = _first_names(own)
    tensors = {}
    for name in own:
        if first[name] != name:
            continue
        if own[name].is_meta:
            raise InputError(f"{path}: {name} is on the meta device and has no numbers to save")
        tensors[name] = own[name].detach().to("cpu").clone(memory_format=torch.contiguous_format)
    data = to_bytes(tensors, metadata={KEY: card.to_json()})

    def put(temporary: Path) -> None:
        temporary.write_bytes(data)

    atomic.write(Path(path), put)


def read_card(path: str | PathLike[str]) -> Card:
    """The card of a weights file; its tensors are not read.

    Raises:
        InputError: the file is missing, or a safetensors file of another program.
        IntegrityError: it is no safetensors file, truncated, or its card is malformed.
    """
    with _opened(path) as file:
        return _card(file, path)


def load(path: str | PathLike[str]) -> Loaded:
    """Rebuild a module from its file alone: in evaluation mode, on the CPU, with the dtypes of the file.

    It has two plain attributes more, which its `state_dict` does not know: `preprocessing`, which turns
    uint8 or [0, 1] images (N, C, H, W) into its input, and `card`. The global random state is untouched.

    Raises:
        InputError: the file is missing or of another program, or its model is not registered.
        IntegrityError: the file is corrupt, or its tensors are not those of its model.
    """
    with _opened(path) as file:
        card, tensors = _card(file, path), _tensors(file)
    if card.specification is None:
        raise InputError(
            f"{path}: holds a module that is no registered model; "
            "build it and use `from resode import weights; weights.load_into(module, path)`"
        )
    module = _built(card.specification, path)
    try:
        fill(module, tensors)
    except InputError as error:
        raise IntegrityError(f"{path}: is no whole {card.specification.name}: {error}") from None
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    loaded = cast(Loaded, module.eval())
    loaded.card = replace(card, preprocessing=replace(card.preprocessing, dtype=dtype))
    loaded.preprocessing = loaded.card.preprocessing
    return loaded


def load_into(module: nn.Module, path: str | PathLike[str], *, new_head: bool = False) -> tuple[str, ...]:
    """Copy the tensors of a weights file into a module, which keeps its dtypes, device and mode.

    All names and shapes are compared before anything is written. Any safetensors file will do, with a card
    or without.

    Args:
        module: the module to fill.
        path: the file.
        new_head: allow one layer to have another number of outputs (classes); it keeps what it has.

    Returns:
        The names of the tensors that were kept: none, or those of the new head.

    Raises:
        InputError: the file is missing, or its names or shapes do not fit.
        IntegrityError: the file is corrupt.
    """
    with _opened(path) as file:
        tensors = _tensors(file)
    own = module.state_dict(keep_vars=True)
    head = _head(own, tensors)
    if new_head:
        tensors |= {name: own[name].detach() for name in head}
    mistakes = mismatches(own, tensors)
    if mistakes:
        hint = "; new_head=True (--set init.new_head=true) keeps the module's own" if head else ""
        raise InputError(f"{path}: does not fit the module: {few(mistakes)}{hint}")
    module.load_state_dict(_complete(own, tensors))
    return head if new_head else ()


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors` the numbers of a module: exactly these names, these shapes, these dtypes.

    Raises:
        InputError: names or shapes do not fit; the first few are listed, and nothing has changed.
    """
    own = module.state_dict(keep_vars=True)
    mistakes = mismatches(own, tensors)
    if mistakes:
        raise InputError(few(mistakes))
    tensors = _complete(own, tensors)
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floating) == 1:
        module.to(dtype=floating.pop())  # with the buffers that no file holds
    else:
        for name, tensor in own.items():
            tensor.data = tensor.data.to(tensors[name].dtype)
    module.load_state_dict(tensors)


def mismatches(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor that is missing, unknown, or of another shape than a module's own."""
    first = _first_names(own)
    missing = [f"{name} is missing" for name in own if name not in tensors and first[name] not in tensors]
    unknown = [f"{name} is unknown" for name in tensors if name not in own]
    shapes = [
        f"{name} is {_size(tensors[name])}, not {_size(own[name])}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    return missing + unknown + shapes


def few(lines: list[str], number: int = 3) -> str:
    """The first few of many lines in one."""
    more = f"; {len(lines) - number} more" if len(lines) > number else ""
    return "; ".join(lines[:number]) + more


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _first_names(own: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first that stands for the same tensor: itself, but for shared parameters."""
    names: dict[int, str] = {}
    return {name: names.setdefault(id(tensor), name) for name, tensor in own.items()}


def _complete(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under every name of a module, those of shared parameters too."""
    return {name: tensors[name if name in tensors else first] for name, first in _first_names(own).items()}


def _head(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The tensors of the one layer that differs, and only in its number of outputs; else none."""
    differ = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    layers = {name.rpartition(".")[0] for name in differ}
    outputs_only = all(
        own[name].ndim == tensors[name].ndim > 0 and own[name].shape[1:] == tensors[name].shape[1:]
        for name in differ
    )
    return tuple(differ) if len(layers) == 1 and outputs_only else ()


def _built(specification: Specification, path: str | PathLike[str]) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return specification.build()
    except InputError as error:
        raise InputError(*(f"{path}: {message}" for message in error.messages)) from None
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise IntegrityError(
            f"{path}: {specification.name} cannot be built from its card ({reason})"
        ) from None


def _card(file: Any, path: str | PathLike[str]) -> Card:
    text = (file.metadata() or {}).get(KEY)
    if text is None:
        raise InputError(
            f"{path}: was not written by resode; a published checkpoint comes in by `resode import`, "
            "other tensors by `from resode import weights; weights.load_into(module, path)`"
        )
    try:
        return Card.from_json(text)
    except ResodeError as error:
        raise type(error)(f"{path}: {error}") from None


def _tensors(file: Any) -> dict[str, Tensor]:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Any]:
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder; a .safetensors file is needed")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        if Path(path).suffix in (".th", ".pth", ".pt", ".tar", ".ckpt"):
            raise InputError(f"{path}: a published checkpoint comes in by `resode import`") from None
        reason = str(error).partition("\n")[0]
        raise IntegrityError(f"{path}: is no whole safetensors file ({reason})") from None


def _as_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The value as it reads back from JSON: tuples become lists."""
    try:
        return dict(json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: JSON cannot hold it ({error})") from None
