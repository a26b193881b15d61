"""Twist: an option that makes the 3x3 convolutions K of a field or a transition depend on the coordinates.

    K y = W * y + sum_{1 <= p + q <= d} X^p Y^q (W_pq * y)

See `resode.operators.twist` for the operator, its coordinates, and how its kernels are tied.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from resode.errors import InputError
from resode.operators.ties import TIES
from resode.operators.twist import check_twist
from resode.registry import Entry


@dataclass(frozen=True)
class Twist:
    """How the kernels of a twist are tied; they are initialised to zero (liuyao12 2021).

    Args:
        tie: free, odd, conformal, saddle or mixed.
        degree: d >= 1.
        coordinates: centred, per-axis or published.
        form: how the twist is computed; see `resode.operators.twist.TwistConv2d`.

    Raises:
        InputError: unknown tie, coordinates or form, or an invalid degree.
    """

    tie: str = "conformal"
    degree: int = 1
    coordinates: str = "centred"
    form: str = "auto"

    def __post_init__(self) -> None:
        check_twist(self.tie, self.degree, self.coordinates, self.form, (3, 3))

    def to_data(self) -> str | dict[str, Any]:
        """Return plain data from which `twist_of` makes the same twist."""
        usual = asdict(Twist(self.tie))
        others = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return {"tie": self.tie, **others} if others else self.tie

    def __str__(self) -> str:
        terms = "X Wx + Y Wy" if self.degree == 1 else f"sum X^p Y^q W_pq, p + q <= {self.degree}"
        return f"W + {terms} ({self.tie})"


TwistOption = Twist | str | Mapping[str, Any] | None


def twist_of(value: TwistOption) -> Twist | None:
    """Resolve an option `twist`: a tie, `{"tie": "free", "degree": 2}`, a specification, or None.

    Raises:
        InputError: anything else, an unknown tie or option, an impossible value.
    """
    if value is None or isinstance(value, Twist):
        return value
    if isinstance(value, str):
        return Twist(value)
    if isinstance(value, Mapping):
        Entry("twist", Twist).check(value)
        return Twist(**value)
    raise InputError(f"twist {value!r}: expected a tie ({', '.join(TIES)}), or null for none")
