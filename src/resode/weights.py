"""Weights: one safetensors file = tensors + specification + preprocessing.

The specification (a registered name and options) rebuilds the module, the tensors fill it, the preprocessing
turns images into its input. Specification, preprocessing and the record of the training are the *card*: JSON
under the key `resode` of the file's metadata, with a format version and the SHA-256 of card and tensors,
which every reader of tensors checks. Nothing in a file is executed.

    weights.save(net, "net.safetensors", weights.Card(specification, preprocessing))
    net = weights.load("net.safetensors")
    logits = net(net.preprocessing(images))
"""

import contextlib
import hashlib
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

FORMAT = 2  # of the card; this and older versions can be read
KEY, DIGEST = "resode", "sha256"  # of the metadata, and of the card in it
ASSUMED = "assumed"  # in the training record under `classes`: their names are a guess
HASHED = 2  # cards of this format and later have a digest


@dataclass(frozen=True)
class Specification:
    """A registered model and its options, from which the module is rebuilt.

    Args:
        name: as `resode list models` prints it.
        options: further arguments of `resode.create`; anything JSON can hold.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"the name of a model is a string, not {self.name!r}")
        object.__setattr__(self, "options", _as_json(self.options, f"the options of {self.name}"))

    def build(self) -> nn.Module:
        """Build the module with initial weights.

        Raises:
            InputError: the name is not registered, or does not take these options.
        """
        return create(self.name, **self.options)


@dataclass(frozen=True)
class Preprocessing:
    """Images to the input of a network: (x - mean) / std for each channel, x in [0, 1].

    Args:
        mean: of each channel.
        std: of each channel.
        size: height and width of the images.
        channels: 1 (grey) or 3 (red, green, blue).
        classes: the names of the classes, in the order of the logits.
        dtype: of the result. `load` sets it to that of the network; the card does not hold it.
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
                raise InputError(f"preprocessing: {name} must be a list, not {values!r}")
            object.__setattr__(self, name, tuple(kind(value) for value in values))
        object.__setattr__(self, "channels", int(self.channels))
        if not len(self.mean) == len(self.std) == self.channels:
            raise InputError(
                f"preprocessing: mean and std need {self.channels} numbers each, one per channel"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            raise InputError("preprocessing: mean must be finite, std finite and positive")
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"preprocessing: size {self.size}; a positive height and width are needed")

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images (N, C, H, W), uint8 or floating point in [0, 1], for the network.

        Raises:
            InputError: another shape, or an integer dtype other than uint8.
        """
        if images.ndim != 4 or images.shape[1:] != (self.channels, *self.size):
            expected = ", ".join(map(str, ("N", self.channels, *self.size)))
            raise InputError(f"images of shape {tuple(images.shape)}: this model takes ({expected})")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"images of {images.dtype}: uint8 or floating point in [0, 1] is needed")
        scale = 255 if images.dtype == torch.uint8 else 1
        x = images.to(torch.promote_types(self.dtype, torch.float32)) / scale
        mean, std = x.new_tensor(self.mean)[:, None, None], x.new_tensor(self.std)[:, None, None]
        return ((x - mean) / std).to(self.dtype)


@dataclass(frozen=True)
class Card:
    """The metadata of a weights file.

    Args:
        specification: of the module; None for a module that is not registered.
        preprocessing: images to the module's input.
        training: record of the training (recipe, seed, errors, ...); anything JSON can hold.
        format: the version of the card.
    """

    specification: Specification | None
    preprocessing: Preprocessing
    training: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "training", _as_json(self.training, "the card's training record"))

    @property
    def sealed(self) -> bool:
        """Whether the file carries a digest; those of earlier versions do not."""
        return self.format >= HASHED

    @property
    def assumes_classes(self) -> bool:
        """Whether nobody recorded the names of the classes: a checkpoint of another program has none."""
        return self.training.get("classes") == ASSUMED or "imported" in self.training

    def derived(self, specification: Specification, change: str, text: str) -> "Card":
        """The card of a changed network; the test error of this one moves into the text.

        Args:
            specification: of the new network.
            change: key for the training record, such as "twisted".
            text: describes the change.
        """
        training = dict(self.training)
        error = training.pop("test_error", None)
        training.pop("test_samples", None)
        before = "" if error is None else f"; before, its test error was {error:.2f} %"
        return replace(self, specification=specification, training={**training, change: text + before})

    def to_json(self) -> str:
        """The card as JSON."""
        values = asdict(self)
        del values["preprocessing"]["dtype"]
        return _to_text(values)

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """Parse the output of `to_json`.

        Raises:
            InputError: a card of a newer format.
            IntegrityError: a malformed card.
        """
        try:
            values = dict(json.loads(text))
            values.pop(DIGEST, None)
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
        """The result of `load`: a module with two more attributes (for type checkers only)."""

        card: Card
        preprocessing: Preprocessing

else:
    Loaded = nn.Module


def save(module: nn.Module, path: str | PathLike[str], card: Card) -> None:
    """Write tensors and card to one file, atomically: the old file stays until the new one is complete.

    The same module and card give the same bytes. A tensor that the module holds under several names is
    written under the first.

    Raises:
        ResourceError: the disk is full or read-only; the old file is unchanged.
        InputError: a tensor is on the meta device.
    """
    own = getattr(module, "_orig_mod", module).state_dict(keep_vars=True)  # from torch.compile
    first = _first_names(own)
    tensors = {}
    for name in own:
        if first[name] != name:
            continue
        if own[name].is_meta:
            raise InputError(f"{path}: {name} is on the meta device and has no data to save")
        tensors[name] = own[name].detach().to("cpu").clone(memory_format=torch.contiguous_format)
    data = to_bytes(tensors, metadata={KEY: stamped(replace(card, format=FORMAT).to_json(), tensors)})

    def put(temporary: Path) -> None:
        temporary.write_bytes(data)

    atomic.write(Path(path), put)


def stamped(card: str, tensors: Mapping[str, Tensor]) -> str:
    """The JSON of a card with the digest of the card and of the tensors."""
    values = json.loads(card)
    values.pop(DIGEST, None)
    return _to_text({**values, DIGEST: _digest(_to_text(values), tensors)})


def _digest(card: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the text of a card and the names, dtypes, shapes and bytes of tensors, in hexadecimal."""
    found = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _to_text(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()  # "\udce9": a path that is not UTF-8


def read_card(path: str | PathLike[str]) -> Card:
    """Read the card of a weights file, without its tensors.

    Raises:
        InputError: the file is missing, or a safetensors file of another program.
        IntegrityError: no safetensors file, a truncated one, or a malformed card.
    """
    with _opened(path) as file:
        return _card(file, path)


def load(path: str | PathLike[str]) -> Loaded:
    """Rebuild a module from its file: in evaluation mode, on the CPU, with the dtypes of the file.

    The module has two more attributes, which are not in its `state_dict`: `preprocessing`, which turns uint8
    or [0, 1] images (N, C, H, W) into its input, and `card`. The global random state is unchanged.

    Raises:
        InputError: the file is missing or of another program, or its model is not registered.
        IntegrityError: the file is corrupt, or its tensors do not fit its model.
    """
    with _opened(path) as file:
        card, tensors = _card(file, path), _tensors(file, path)
    if card.specification is None:
        raise InputError(
            f"{path}: its network was made in Python and is no registered model, so that no command can "
            "rebuild it; in Python, give the network that takes the weights (into)"
        )
    module = _built(card.specification, path)
    try:
        fill(module, tensors)
    except InputError as error:
        raise IntegrityError(f"{path}: does not fit {card.specification.name}: {error}") from None
    return with_card(module.eval(), card)


def with_card(module: nn.Module, card: Card) -> Loaded:
    """The module itself with its card and its preprocessing, for the dtype of its parameters, as attributes.

    A module that has a `preprocessing` of its own keeps it.
    """
    loaded = cast(Loaded, module)
    if isinstance(getattr(module, "preprocessing", None), Preprocessing | None):
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        loaded.card = replace(card, preprocessing=replace(card.preprocessing, dtype=dtype))
        loaded.preprocessing = loaded.card.preprocessing
    return loaded


def load_into(module: nn.Module, path: str | PathLike[str], *, new_head: bool = False) -> tuple[str, ...]:
    """Copy the tensors of a weights file into a module, which keeps its dtypes, device and mode.

    All names and shapes are checked before anything is written. Any safetensors file works, with or without a
    card.

    Args:
        module: the module to fill.
        path: the file.
        new_head: the layer that gives the logits keeps its own weights, and may have another number of
            outputs (classes).

    Returns:
        The names of the tensors of the new head; empty if the whole file was copied.

    Raises:
        InputError: the file is missing, or its names or shapes do not fit.
        IntegrityError: the file is corrupt.
    """
    module = getattr(module, "_orig_mod", module)  # from torch.compile
    with _opened(path) as file:
        tensors = _tensors(file, path)
    own = module.state_dict(keep_vars=True)
    if not own.keys() <= tensors.keys():
        tensors = unwrapped(tensors)
    differing = _head(own, tensors)
    if new_head:
        kept = differing if mismatches(own, tensors) else head(module)
        tensors |= {name: own[name].detach() for name in kept}
    mistakes = mismatches(own, tensors)
    if mistakes:
        hint = "; new_head=True (--set init.new_head=true) keeps the module's own" if differing else ""
        raise InputError(f"{path}: does not fit the module: {few(mistakes)}{hint}")
    module.load_state_dict(_complete(own, tensors))
    return kept if new_head else ()


def head(module: nn.Module) -> tuple[str, ...]:
    """The names of the tensors of the layer that gives the logits: the last one with parameters.

    Raises:
        InputError: it is not linear.
    """
    layers = {name.rpartition(".")[0]: None for name, _ in module.named_parameters()}
    last = next(reversed(layers), "")
    if not isinstance(module.get_submodule(last), nn.Linear):
        raise InputError(
            f"cannot tell which layer gives the logits: the last one, '{last}', is not linear; give classes "
            "in the order of the weights"
        )
    return tuple(f"{last}.{name}".lstrip(".") for name, _ in module.get_submodule(last).named_parameters())


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a module, which takes their dtypes; names and shapes must match exactly.

    Raises:
        InputError: names or shapes do not match; lists the first few, and the module is unchanged.
    """
    own = module.state_dict(keep_vars=True)
    mistakes = mismatches(own, tensors)
    if mistakes:
        raise InputError(few(mistakes))
    tensors = _complete(own, tensors)
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floating) == 1:
        module.to(dtype=floating.pop())  # converts non-persistent buffers as well
    else:
        for name, tensor in own.items():
            tensor.data = tensor.data.to(tensors[name].dtype)
    module.load_state_dict(tensors)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what wrappers add to their names.

    torch.compile adds `_orig_mod.` for the network or for a part of it, DataParallel `module.` to all names.
    """
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def mismatches(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor that is missing, unknown, or of another shape than the module's own."""
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
    """Join lines into one: the first few, and the number of the others."""
    more = f"; {len(lines) - number} more" if len(lines) > number else ""
    return "; ".join(lines[:number]) + more


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _first_names(own: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same tensor; it differs for shared parameters only."""
    names: dict[int, str] = {}
    return {name: names.setdefault(id(tensor), name) for name, tensor in own.items()}


def _complete(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under every name of a module, including the further names of shared parameters."""
    return {name: tensors[name if name in tensors else first] for name, first in _first_names(own).items()}


def _head(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The tensors of the head, if it is the only layer that differs, and only in the number of outputs."""
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
            f"{path}: was not written by resode; `resode import` converts published checkpoints, and in "
            "Python a network of yours takes other tensors"
        )
    try:
        return Card.from_json(text)
    except ResodeError as error:
        raise type(error)(f"{path}: {error}") from None


def _tensors(file: Any, path: str | PathLike[str]) -> dict[str, Tensor]:
    """All tensors, after checking them and the card against the digest where there is one.

    Raises:
        IntegrityError: the digest differs, or a file of ours lacks one.
    """
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = (file.metadata() or {}).get(KEY)
    if text is None:  # of another program
        return tensors
    card = _card(file, path)
    if DIGEST in json.loads(text):
        if stamped(text, tensors) != text:
            raise IntegrityError(f"{path}: does not match the SHA-256 that it carries (damaged)")
    elif card.sealed:
        raise IntegrityError(f"{path}: lacks the SHA-256 that its format carries (damaged)")
    return tensors


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
            raise InputError(
                f"{path}: is no safetensors file; use `resode import` for a published checkpoint"
            ) from None
        reason = str(error).partition("\n")[0]
        raise IntegrityError(f"{path}: is not a complete safetensors file ({reason})") from None


def _as_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The value after a round trip through JSON: tuples become lists."""
    try:
        return dict(json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: JSON cannot hold it ({error})") from None
