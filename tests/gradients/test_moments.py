"""Batch normalisation by known moments is batch normalisation, bit for bit, forwards and backwards."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import resode
from resode.blocks import DynamicBlock, Stage
from resode.gradients import Checkpointed
from resode.gradients.moments import Moments


def norm_of(channels=20, **options):
    torch.manual_seed(0)
    made = nn.BatchNorm2d(channels, **options)
    for p in made.parameters():
        p.data += torch.randn_like(p)
    return made


@contextlib.contextmanager
def looking(moments, noting):
    with moments.taken(), moments.step(0, noting):
        yield


def image(dtype=torch.float32, layout=torch.contiguous_format):
    x = torch.randn(3, 20, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (2 * x + 0.3).to(dtype).to(memory_format=layout).requires_grad_()


def results(norm, x):
    """The value and its gradients of a generic loss."""
    y = norm(x)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    inputs = [t for t in (x, *norm.parameters()) if t.requires_grad]
    return y, *torch.autograd.grad((weight * y + y.square()).sum(), inputs)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


LAYOUTS = [torch.contiguous_format, torch.channels_last]
KINDS = [
    {}, {"eps": 0.1, "momentum": 0.3}, {"track_running_stats": False}, {"affine": False}, {"momentum": None},
    {"bias": False},
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", KINDS, ids=[str(kind) for kind in KINDS])
def test_noted_and_known_moments_give_the_bits_of_torch(options, dtype, layout):
    plain = norm_of(**options)
    if dtype == torch.float64:
        plain.double()
    norm = copy.deepcopy(plain)
    moments = Moments([norm])
    expected = results(plain, image(dtype, layout))
    with looking(moments, noting=True):
        assert equal(results(norm, image(dtype, layout)), expected)
    assert equal(norm.buffers(), plain.buffers())
    norm.load_state_dict(plain.state_dict())
    with looking(moments, noting=False):
        assert equal(results(norm, image(dtype, layout)), expected)


class Counting(TorchDispatchMode):
    """Counts how often the moments of a batch are taken."""

    def __init__(self):
        super().__init__()
        self.taken = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.native_batch_norm.default and args[5]:
            self.taken += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_moments_are_not_taken_and_leave_the_running_ones(dtype):
    norm = norm_of()
    moments = Moments([norm])
    with looking(moments, noting=True):
        norm(image(dtype))
    before = copy.deepcopy(list(norm.buffers()))
    with Counting() as counting, looking(moments, noting=False):
        norm(image(dtype))
    assert counting.taken == 0
    assert equal(norm.buffers(), before)


def test_a_norm_is_as_before_behind_a_step():
    norm = norm_of()
    with contextlib.suppress(KeyError), looking(Moments([norm]), noting=True):
        raise KeyError
    assert "forward" not in vars(norm)


def test_statistics_that_are_switched_off_are_not_written():
    norm = norm_of()
    norm.track_running_stats = False
    before = copy.deepcopy(list(norm.buffers()))
    with looking(Moments([norm]), noting=True):
        norm(image())
    assert equal(norm.buffers(), before)


@pytest.mark.parametrize("channels", [4, 32])
def test_a_wrong_number_of_channels_is_refused_by_torch(channels):
    norm = norm_of(channels)
    with (
        looking(Moments([norm]), noting=True),
        pytest.raises(RuntimeError, match="should contain 20 elements"),
    ):
        norm(image())


def test_one_value_a_channel_is_refused_by_torch():
    norm = norm_of()
    with looking(Moments([norm]), noting=True), pytest.raises(ValueError, match="more than 1 value"):
        norm(torch.randn(1, 20, 1, 1))


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_is_frozen_gets_nothing(frozen):
    plain, x = norm_of(), image()
    {"x": x, "weight": plain.weight, "bias": plain.bias}[frozen].requires_grad_(False)
    norm = copy.deepcopy(plain)
    moments = Moments([norm])
    for noting in (True, False):
        with looking(moments, noting):
            assert equal(results(norm, x), results(plain, x))


def test_the_second_derivative_is_that_of_torch():
    norm = norm_of()
    moments = Moments([norm])
    with looking(moments, noting=True):
        norm(image())

    def second():
        x = image()
        (g,) = torch.autograd.grad(norm(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, *norm.parameters()])

    with looking(moments, noting=False):
        found = second()
    for a, b in zip(found, second(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("levels", [1, 2])
def test_steps_that_are_done_again_take_no_moments_again(levels):
    torch.manual_seed(0)
    network = resode.create("he_resnet20")
    network.set_gradient(Checkpointed(every=2, levels=levels))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    with Counting() as counting:
        network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert counting.taken == norms


def classical(method):
    torch.manual_seed(0)
    network = resode.create("he_resnet20")
    network.set_gradient(method)
    return network, torch.randn(4, 3, 16, 16)


def dynamic(method):
    torch.manual_seed(0)
    return DynamicBlock(
        Stage(16, {"name": "preactivation", "norm": "batch"}, "heun", 4, gradient=method)
    ), torch.randn(4, 16, 8, 8)


def step(made, x, half):
    """The value, the gradients and the running statistics of a training step that is gone through twice."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = made(x)
    loss = y.float().square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return [y, *(p.grad for p in made.parameters()), *made.buffers()]


# In bf16 the steps of a dynamic block share half-precision copies of parameters, where gradients are summed.
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("kind", "half"), [(classical, False), (classical, True), (dynamic, False)])
def test_a_checkpointed_step_has_the_bits_of_the_plain_one(kind, levels, half):
    plain = step(*kind("stored"), half)
    assert equal(step(*kind(Checkpointed(every=2, levels=levels)), half), plain)


def test_a_unit_that_stands_twice_has_the_bits_of_the_plain_one():
    found = []
    for method in ("stored", Checkpointed(every=2)):
        network, x = classical(method)
        network.layer1[2] = network.layer1[1]
        found.append(step(network, x, half=False))
    assert equal(*found)


@pytest.mark.parametrize("early", [True, False])
def test_a_step_may_differentiate_within(early):
    class Descending(nn.Module):
        def __init__(self, unit):
            super().__init__()
            self.unit = unit

        def forward(self, y):
            z = self.unit(y)
            (g,) = torch.autograd.grad(z.sum(), y, retain_graph=True)
            return z - 0.1 * g.detach()

    found = []
    for method in ("stored", Checkpointed(plan=(3, 3, 3))):
        network, x = classical(method)
        network.layer1[1], network.layer2[1] = Descending(network.layer1[1]), Descending(network.layer2[1])
        with torch.utils.checkpoint.set_checkpoint_early_stop(early):
            found.append(step(network, x, half=False))
    assert equal(*found)


class Twice(nn.Module):
    """Calls a norm on what does not fit, and then on what does."""

    def __init__(self, unit):
        super().__init__()
        self.unit, self.norm = unit, nn.BatchNorm2d(16)

    def forward(self, y):
        z = self.norm(y[:, :, ::2, ::2]).mean()
        return self.unit(z + self.norm(2 * y + y.flip(3).relu()))


class Within(nn.Module):
    """Is checkpointed by torch itself."""

    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def forward(self, y):
        return torch.utils.checkpoint.checkpoint(self.unit, y, use_reentrant=False)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("wrapper", [Twice, Within])
def test_units_of_ones_own_have_the_bits_of_the_plain_step(wrapper, levels):
    found = []
    for method in ("stored", Checkpointed(every=2, levels=levels)):
        network, x = classical(method)
        network.layer1[1] = wrapper(network.layer1[1])
        found.append(step(network, x, half=False))
    assert equal(*found)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_goes_through():
    network, x = classical(Checkpointed(every=2))
    with forward_ad.dual_level():
        y = network(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(y).tangent is not None
