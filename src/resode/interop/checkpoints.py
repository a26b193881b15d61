"""Reading of foreign checkpoints by PyTorch's restricted loader only, because unpickling executes code.

The loader rebuilds tensors and plain containers and refuses everything else. There is no option to bypass it.
"""

import re
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from resode import weights
from resode.errors import InputError, IntegrityError

# Keys of the tensors in files that also hold epoch, accuracy or optimizer.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, on the CPU, without prefixes of DataParallel and compilation.

    Raises:
        InputError: the file is missing, or holds no tensors by name.
        IntegrityError: the file is corrupt, or needs more than tensors and containers; nothing is executed.
    """
    content = _load(Path(path))
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(_is_named_tensor, content.items())):
        raise InputError(f"{path}: is no checkpoint: it does not hold tensors by name")
    return weights.unwrapped(content)


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: is a safetensors file; `resode import` reads PyTorch's checkpoints")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anything serious raises below
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a hostile pickle may raise anything
        raise IntegrityError(f"{path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """A message of our own, because PyTorch's recommends the unrestricted loader."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wanted:
        return f"refused: it asks for {wanted[1]}, and only tensors by name (a state_dict) are read"
    return "is corrupt, or no PyTorch checkpoint"


def _is_named_tensor(item: tuple[object, object]) -> bool:
    name, tensor = item
    return (
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )
