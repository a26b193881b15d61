"""A right-hand side of one's own: any callable `width -> nn.Module`."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import resode
from resode import DynamicNet, Stage
from resode.blocks import DynamicBlock
from resode.controls import roughness
from resode.errors import InputError
from resode.fields import Custom, fields
from resode.integrators import RK4, Euler, Leapfrog
from resode.models import why_unnamed

WIDTH = 6


class Mixing(nn.Module):
    """tanh(N(K y))."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(2, width)

    def forward(self, y):
        return torch.tanh(self.norm(self.conv(y)))


def with_batch_norm(width):
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Tanh())


def plain(width):
    return nn.Conv2d(width, width, 1)


@pytest.fixture
def registry(monkeypatch):
    """The registry of fields, restored afterwards."""
    monkeypatch.setattr(fields, "_entries", dict(fields._entries))
    return fields


@pytest.mark.parametrize(
    "make", [Mixing, plain, with_batch_norm, partial(Mixing, kernel=5), lambda width: nn.Tanh()]
)
def test_a_callable_is_a_right_hand_side(make):
    torch.manual_seed(0)
    net = DynamicNet([Stage(WIDTH, make, RK4(), states=2)], classes=3)
    x = torch.randn(4, 3, 8, 8)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    copied = copy.deepcopy(net).eval()
    assert torch.equal(copied(x), net.eval()(x))
    assert copied.stages[0].stage == net.stages[0].stage
    other = net.with_stages([Stage(WIDTH, make, Euler(), states=2)])
    assert other(x).shape == (4, 3)
    finer = resode.regrid(net, states="double")
    assert finer.stages[0].stage.states.steps == 4
    assert roughness(net, 1.0, 1.0).isfinite() if any(True for _ in net.stages.parameters()) else True


def test_its_steps_are_those_of_the_scheme():
    """Euler by hand with the modules at the control nodes."""
    torch.manual_seed(1)
    block = DynamicBlock(Stage(WIDTH, Mixing, Euler(), states=[0, 0.5, 2]))
    y = torch.randn(2, WIDTH, 5, 5)
    by_hand = y + 0.5 * block.controls[0](y)
    by_hand = by_hand + 1.5 * block.controls[1](by_hand)
    torch.testing.assert_close(block(y), by_hand, rtol=1e-6, atol=1e-6)  # rounding of float32


@pytest.mark.parametrize(
    ("scheme", "gradient"), [(RK4(), "checkpointed"), (Leapfrog(), "reversible"), (RK4(), "adjoint")]
)
def test_every_gradient_method_takes_it(scheme, gradient):
    """The adjoint equals the gradient up to the scheme's error, which is small on fine steps."""
    states = {"steps": 32 if gradient == "adjoint" else 4, "end": 0.5}
    torch.manual_seed(2)
    stored = DynamicBlock(Stage(WIDTH, Mixing, scheme, states)).double()
    other = DynamicBlock(Stage(WIDTH, Mixing, scheme, states, gradient=gradient)).double()
    other.load_state_dict(stored.state_dict())
    y = torch.randn(2, WIDTH, 4, 4, dtype=torch.float64)
    for block in (stored, other):
        block(y).square().sum().backward()
    tolerance = 1e-3 if gradient == "adjoint" else 1e-9
    for p, q in zip(stored.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gradient", ["stored", "checkpointed"])
def test_batch_norms_within_it_have_statistics_for_each_evaluation(gradient):
    block = DynamicBlock(Stage(WIDTH, with_batch_norm, RK4(), states=2, gradient=gradient))
    block(torch.randn(4, WIDTH, 5, 5)).sum().backward()
    assert len(block.statistics) == 8
    means = [s.get_buffer("1.running_mean") for s in block.statistics]
    assert all(not torch.equal(a, b) for a, b in pairwise(means))
    assert all(s.get_buffer("1.num_batches_tracked") == 1 for s in block.statistics)


class Averaging(nn.Module):
    """y minus a running mean of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, y):
        self.mean.lerp_(y.detach().mean((0, 2, 3)), 0.1)
        return (y - self.mean[:, None, None]) * self.scale[:, None, None]


class Replacing(Averaging):
    """The same with a new tensor each time."""

    def forward(self, y):
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean((0, 2, 3))
        return (y - self.mean[:, None, None]) * self.scale[:, None, None]


class Timed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, t, y):
        return y


class Pair(Timed):
    def forward(self, y):
        return y, y


def one_for_all(width, module=nn.Conv2d(WIDTH, WIDTH, 1)):  # noqa: B008
    return module


def of_random_size(width, sizes=iter([1, 3, 5])):  # noqa: B008
    return nn.Conv2d(width, width, next(sizes), padding="same")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda width: nn.Conv2d(width, 2 * width, 1), "number of channels, 6x32x32 to 12x32x32"),
        (lambda width: nn.Conv2d(width, 1, 1), "number of channels, 6x32x32 to 1x32x32"),
        (
            lambda width: nn.Conv2d(width, width, 3),
            "size of images, 6x32x32 to 6x30x30; pad",
        ),
        (lambda width: nn.Conv2d(16, 16, 3, padding=1), "takes 16 channels where the state has the width 6"),
        (lambda width: nn.LazyConv2d(width, 1), "the parameter weight has no shape yet"),
        (lambda width: None, "an nn.Module is needed for width 6, not NoneType"),
        (nn.Conv2d, "field Conv2d: is called with the width alone"),
        (Mixing(WIDTH), "field Mixing: a module; .* the class Mixing or lambda width"),
        (one_for_all, "returned one module for several control nodes"),
        (of_random_size, "the parameter weight differs between control nodes"),
        (Timed, "field Timed: its forward has to take the state alone"),
        (Pair, "field Pair: its forward returns a tuple"),
        (Averaging, "field Averaging: its forward writes the buffer mean, .* take nn.BatchNorm2d"),
        (Replacing, "field Replacing: its forward writes the buffer mean"),
    ],
)
def test_a_field_that_is_none_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        DynamicBlock(Stage(WIDTH, make, Euler(), states=3))
    assert len(error.value.messages) == 1


def test_a_field_for_one_size_of_images_is_not_refused():
    block = DynamicBlock(Stage(WIDTH, lambda width: nn.LayerNorm([width, 9, 5]), Euler(), states=1))
    assert block(torch.randn(2, WIDTH, 9, 5)).shape == (2, WIDTH, 9, 5)
    net = DynamicNet([Stage(WIDTH, lambda width: nn.LayerNorm([width, 9, 5]), Euler(), states=1)])
    assert "LayerNorm" in repr(net)


def test_a_spectral_norm_needs_the_stored_gradient():
    def bounded(width):
        return spectral_norm(nn.Conv2d(width, width, 1))

    block = DynamicBlock(Stage(WIDTH, bounded, Euler(), states=2))
    block(torch.randn(2, WIDTH, 4, 4)).sum().backward()
    with pytest.raises(InputError, match=r"gradient checkpointed: .* take gradient stored"):
        block.set_gradient("checkpointed")
    with pytest.raises(InputError, match=r"gradient checkpointed: .* take gradient stored"):
        DynamicBlock(Stage(WIDTH, bounded, Euler(), states=2, gradient="checkpointed"))


def test_looking_at_a_field_leaves_it_and_the_random_numbers_alone():
    class Counting(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.drop, self.calls = nn.BatchNorm2d(width), nn.Dropout(), 0

        def forward(self, y):
            self.calls += 1
            return self.drop(self.norm(y))

    torch.manual_seed(3)
    before = torch.get_rng_state()
    block = DynamicBlock(Stage(WIDTH, Counting, Euler(), states=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert [node.calls for node in block.controls] == [0, 0]
    assert all(s.get_buffer("norm.num_batches_tracked") == 0 for s in block.statistics)


def test_files_need_a_name_and_the_message_says_how(registry):
    net = DynamicNet([Stage(WIDTH, Mixing, RK4(), states=2)])
    with pytest.raises(InputError, match=r"the field Mixing has no name for files: put @fields\.register"):
        net.options()
    assert "put @fields.register('NAME') on its definition" in why_unnamed(net)
    registry.register("mixing", summary="tanh(N(K y))")(Mixing)
    assert net.options()["stages"][0]["field"] == "mixing"
    again = resode.create("dynamic", **net.options())
    again.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(net(x), again(x))


def test_a_registered_module_has_its_options_in_recipes(registry):
    registry.register("mixing")(Mixing)
    field = registry.of({"name": "mixing", "kernel": 1})
    assert field == Custom(Mixing, (("kernel", 1),))
    assert field.build(WIDTH).conv.kernel_size == (1, 1)
    assert registry.describe(field) == {"name": "mixing", "kernel": 1}
    with pytest.raises(InputError, match="mixing has no option 'kernl'; did you mean 'kernel'"):
        registry.of({"name": "mixing", "kernl": 1})


def test_a_function_of_width_is_registered_as_one(registry):
    @registry.register("by_function")
    def by_function(width, kernel=3):
        return nn.Conv2d(width, width, kernel, padding=kernel // 2)

    assert registry.of("by_function").build(4)(torch.ones(1, 4, 3, 3)).shape == (1, 4, 3, 3)
    assert registry.describe(registry.of(by_function)) == "by_function"
