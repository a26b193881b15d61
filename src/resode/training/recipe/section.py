"""Section: the base class of all settings, and the types that several sections share.

The text under a key is its description: `SGD.model_fields["lr"].description`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Some settings of an experiment: frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _absolute_folder(source: str) -> str:
    path = Path(source).expanduser()
    if not path.is_dir():
        return source
    from resode.data import sources  # PyTorch: only where a folder may have the name of a data set

    return source if source in sources.names() else str(path.resolve())


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int | str | Mapping) else value


Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Inside = Annotated[float, Field(gt=0, lt=1)]
DataSource = Annotated[str, AfterValidator(_absolute_folder)]  # absolute: a run may resume from elsewhere
FilePath = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().resolve()))]
OneOrMany = BeforeValidator(_as_list)  # a single item may be given without its list
