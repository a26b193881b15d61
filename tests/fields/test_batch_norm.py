"""`BatchNorm2d` with recorded and reused moments gives the bits of torch's, forward and backward."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from resode.fields.batch_norm import BatchNorm2d, Moments
from tests.batch_moments import Counting


def norm_pair(channels=20, **options):
    """torch's norm and ours, with equal parameters."""
    torch.manual_seed(0)
    plain, own = nn.BatchNorm2d(channels, **options), BatchNorm2d(channels, **options)
    for p in plain.parameters():
        p.data += torch.randn_like(p)
    own.load_state_dict(plain.state_dict())
    return plain, own


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


KINDS = [
    {}, {"eps": 0.1, "momentum": 0.3}, {"track_running_stats": False}, {"affine": False}, {"momentum": None},
    {"bias": False},
]  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", KINDS, ids=[str(kind) for kind in KINDS])
def test_recorded_and_reused_moments_give_the_bits_of_torch(options, dtype, layout):
    plain, own = norm_pair(**options)
    if dtype == torch.float64:
        plain, own = plain.double(), own.double()
    before, moments = copy.deepcopy(own.state_dict()), Moments()
    expected = results(plain, image(dtype, layout))
    with moments.step(0, record=True):
        assert equal(results(own, image(dtype, layout)), expected)
    assert equal(own.buffers(), plain.buffers())
    own.load_state_dict(before)
    with moments.step(0, record=False):
        assert equal(results(own, image(dtype, layout)), expected)


def test_outside_a_step_it_is_the_norm_of_torch():
    plain, own = norm_pair()
    assert repr(own) == repr(plain)
    assert list(own.state_dict()) == list(plain.state_dict())
    for _ in range(2):
        found, expected = results(own, image()), results(plain, image())
        assert equal(found, expected)
        assert found[0].grad_fn.name() == expected[0].grad_fn.name()
        assert equal(own.buffers(), plain.buffers())
        plain.eval(), own.eval()


def test_reused_moments_are_not_computed_and_leave_the_running_ones():
    _, norm = norm_pair()
    moments = Moments()
    with moments.step(0, record=True):
        norm(image())
    before = copy.deepcopy(list(norm.buffers()))
    with Counting() as counting, moments.step(0, record=False):
        norm(image())
    assert counting.computed == 0
    assert equal(norm.buffers(), before)


def test_calls_in_another_order_or_of_another_shape_compute_their_moments():
    _, first = norm_pair()
    second, x = copy.deepcopy(first), image()
    moments = Moments()
    with moments.step(0, record=True):
        first(x), second(3 * x + 1)
    for calls in ([(second, 3 * x + 1), (first, x)], [(first, x[:2]), (second, x[:2])]):
        with Counting() as counting, moments.step(0, record=False):
            found = [norm(value) for norm, value in calls]
        assert counting.computed == 2
        assert equal(found, [norm(value) for norm, value in calls])


def test_nothing_is_reused_in_another_step():
    _, norm = norm_pair()
    moments = Moments()
    with moments.step(0, record=True):
        norm(image())
    with Counting() as counting, moments.step(1, record=False):
        norm(image())
    assert counting.computed == 1


def test_it_saves_the_tensors_that_torch_saves():
    """A checkpoint within a step relies on it: it recomputes outside the step."""
    plain, own = norm_pair()
    moments, x = Moments(), image()

    def saved(norm):
        found = []
        with saved_tensors_hooks(lambda t: (found.append(t.detach()), t)[1], lambda t: t):
            norm(x)
        return found

    expected = saved(plain)
    for record in (True, False):
        with moments.step(0, record):
            assert equal(saved(own), expected)


def test_compiled_it_is_the_norm_of_torch():
    _, norm = norm_pair()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with Moments().step(0, record=True):
        torch.compile(norm, backend=backend, fullgraph=True)(image())
    called = [node.target for graph in graphs for node in graph.graph.nodes if "norm" in str(node.target)]
    assert called[-1:] == [nn.functional.batch_norm]


@pytest.mark.parametrize(("shape", "error"), [((3, 8, 5, 7), RuntimeError), ((1, 20, 1, 1), ValueError)])
def test_what_torch_refuses_is_refused_by_torch(shape, error):
    plain, own = norm_pair()
    with pytest.raises(error) as expected:
        plain(torch.randn(shape))
    with pytest.raises(error) as found, Moments().step(0, record=True):
        own(torch.randn(shape))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(frozen):
    plain, own = norm_pair()
    x = image()
    for norm in (plain, own):
        {"x": x, "weight": norm.weight, "bias": norm.bias}[frozen].requires_grad_(False)
    moments = Moments()
    for record in (True, False):
        with moments.step(0, record):
            assert equal(results(own, x), results(plain, x))


def test_the_second_derivative_is_that_of_torch():
    plain, own = norm_pair()
    moments = Moments()

    def second(norm):
        x = image()
        (g,) = torch.autograd.grad(norm(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, *norm.parameters()])

    for record in (True, False):
        with moments.step(0, record):
            torch.testing.assert_close(second(own), second(plain))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_is_that_of_torch():
    plain, own = norm_pair()
    x, tangents = image().detach(), []
    for norm in (plain, own):
        with forward_ad.dual_level(), Moments().step(0, record=True):
            tangents.append(forward_ad.unpack_dual(norm(forward_ad.make_dual(x, x.cos()))).tangent)
    assert equal(tangents[:1], tangents[1:])
