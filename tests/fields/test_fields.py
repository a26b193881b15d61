"""What holds for every field: one that is registered enters these tests by itself."""

import copy
import itertools
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resode.errors import InputError
from resode.fields import Field, fields

NORMS = ["batch", {"name": "group", "groups": 1}, "tv", {"name": "tv", "eps": 1e-4, "scale": False}, None]
TV = {"norm": "tv", "activation": "tanh"}


def specify(name, norm, boundary, groups, bias, twist=None):
    options = {"norm": norm, "activation": "tanh", "boundary": boundary, "groups": groups, "bias": bias}
    options |= {"twist": twist} if twist else {}
    known = fields.entry(name).options()
    return {"name": name, **{option: value for option, value in options.items() if option in known}}


EVERY = [
    specify(*choice)
    for choice in itertools.product(fields.names(), NORMS, ["zero", "periodic"], [1, 2], [False, True])
]
TWISTS = [(None, "zero", 1, False, "conformal"), ("batch", "periodic", 2, True, {"tie": "free", "degree": 2})]
EVERY += [specify(name, *choice) for name, choice in itertools.product(fields.names(), TWISTS)]
DEFAULTS = [
    {"name": "parabolic", "twist": "conformal", "groups": 2},
    *fields.names(),
    *({"name": name, "boundary": "periodic", **TV} for name in fields.names()),
]
every_field = pytest.mark.parametrize("data", EVERY, ids=lambda data: "-".join(str(v) for v in data.values()))
default_fields = pytest.mark.parametrize("data", DEFAULTS, ids=str)


def layer(field, width=8):
    """Its module with no parameter at a special value."""
    module = field.build(width)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        if parameter.ndim == 3:  # a twist
            nn.init.normal_(parameter, std=0.1)
    return module


def state(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def check_shape_copies_and_memory(field):
    module = layer(field).to(memory_format=torch.channels_last)
    y = state(2, 8, 5, 6).requires_grad_()
    f = module(y)
    (gradient,) = torch.autograd.grad(f.square().sum(), y)
    assert f.shape == y.shape
    assert f.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    module.eval()
    other = field.build(8).eval()
    other.load_state_dict(module.state_dict())
    f = module(y)
    assert torch.equal(copy.deepcopy(module)(y), f)
    assert torch.equal(other(y), f)
    for size in ((1, 1), (2, 3), (9, 4)):
        assert module(state(2, 8, *size)).shape == (2, 8, *size)


def check_gradients(field):
    module = layer(field).double()
    y = torch.randn(2, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (y, *module.parameters())
    assert torch.autograd.gradcheck(lambda y, *_: module(y), inputs, fast_mode=True)
    gradients = torch.autograd.grad(module.eval()(y), inputs, torch.randn_like(y))
    assert all(gradient.abs().max() > 1e-9 for gradient in gradients)  # nothing that is stored is idle


def check_autocast(field):
    module = layer(field)
    y = state(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        f = module(y)
        f.float().square().sum().backward()
    assert f.isfinite().all()
    assert f.is_contiguous(memory_format=torch.channels_last)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    if field.name != "Bottleneck":  # of two channels in a group norm: rounding decides
        torch.testing.assert_close(f.float(), module(y), rtol=0.1, atol=0.1 * module(y).abs().max().item())


def check_plain_data(field):
    assert fields.of(fields.describe(field)) == field
    assert hash(copy.deepcopy(field)) == hash(field)
    assert field.equation
    with pytest.raises(FrozenInstanceError):
        field.norm = None


@every_field
def test_shape_copies_and_memory(data):
    check_shape_copies_and_memory(fields.of(data))


@every_field
def test_gradients(data):
    check_gradients(fields.of(data))


@every_field
def test_autocast(data):
    check_autocast(fields.of(data))


@every_field
def test_plain_data_there_and_back(data):
    check_plain_data(fields.of(data))


@default_fields
def test_one_graph(data):
    module = layer(fields.of(data))
    y = state(2, 8, 4, 4).requires_grad_()
    torch._dynamo.reset()
    traced = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(y), module(y))
    ours, theirs = (torch.autograd.grad(f(y).square().sum(), y) for f in (module, traced))
    torch.testing.assert_close(ours, theirs)


@default_fields
def test_on_the_meta_device(data):
    with torch.device("meta"):
        module = fields.of(data).build(8)
    assert module(torch.empty(2, 8, 3, 5, device="meta")).shape == (2, 8, 3, 5)
    assert all(tensor.is_meta for tensor in module.state_dict().values())


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(fields.names()),
    st.sampled_from(["group", "tv", None]),
    st.sampled_from(["zero", "periodic"]),
    st.integers(1, 5),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_width_any_size_any_real_type(name, norm, boundary, quarter, size, dtype):
    field = fields.of(specify(name, norm, boundary, 1, True))
    module = field.build(4 * quarter).to(dtype)
    f = module(torch.randn(2, 4 * quarter, *size, dtype=dtype))
    assert f.shape == (2, 4 * quarter, *size)
    assert f.dtype is dtype
    assert f.isfinite().all()


@pytest.mark.parametrize("name", fields.names())
def test_a_periodic_field_commutes_with_shifts(name):
    module = layer(fields.build(name, boundary="periodic", **TV)).double()
    y = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module(y.roll((1, 2), (2, 3))), module(y).roll((1, 2), (2, 3)))


@pytest.mark.parametrize("name", fields.names())
def test_groups_do_not_mix(name):
    if name in ("bottleneck", "triple"):
        pytest.skip("its 1x1 convolutions mix all channels")
    module = layer(fields.build(name, groups=2, norm=None)).double()
    y = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    other = y.clone()
    other[:, :4] += 1
    assert torch.equal(module(y)[:, 4:], module(other)[:, 4:])
    assert not torch.equal(module(y)[:, :4], module(other)[:, :4])


@pytest.mark.parametrize("name", fields.names())
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bacth"}, "unknown norm 'bacth'; did you mean 'batch'"),
        ({"activation": "thanh"}, "unknown activation 'thanh'; did you mean 'tanh'"),
        ({"boundary": "perodic"}, "unknown boundary 'perodic'; did you mean 'periodic'"),
        ({"groups": 0}, "0 groups; a positive integer is needed"),
        ({"groups": True}, "True groups; a positive integer is needed"),
        ({"groups": 3}, "3 groups do not divide"),
        ({"bias": "yes"}, "bias 'yes'; true or false is needed"),
        ({"nrom": "tv"}, "has no option 'nrom'; did you mean 'norm'"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        fields.build(name, **options).build(8)
    assert "\n" not in str(error.value)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(InputError, match="unknown field 'parabolc'; did you mean 'parabolic'"):
        fields.of("parabolc")


@dataclass(frozen=True)
class Advection(Field):
    """f(y) = -c (y(j) - y(j - 1)): upwind transport along the rows at a learned speed c_c per channel."""

    speed: float = 1.0

    @property
    def equation(self) -> str:
        return "-c d/dx y"

    def build(self, width: int) -> nn.Module:
        return Upwind(self.speed, width)


class Upwind(nn.Module):
    def __init__(self, speed: float, width: int) -> None:
        super().__init__()
        self.speed = nn.Parameter(torch.full((width,), speed))

    def forward(self, y: Tensor) -> Tensor:
        return -self.speed[:, None, None] * (y - y.roll(1, 3))


def test_a_field_of_ones_own_is_held_to_the_same(monkeypatch):
    monkeypatch.setattr(fields, "_entries", dict(fields._entries))
    fields.register("advection", summary="upwind transport")(Advection)
    field = fields.of({"name": "advection", "speed": 0.5})
    assert field == Advection(0.5)
    check_shape_copies_and_memory(field)
    check_gradients(field)
    check_autocast(field)
    check_plain_data(field)
