"""The operator is the twist with its gradients; `Generators` and its adjoint are V and its transpose."""

import copy

import pytest
import torch
from torch import nn

from resode.kernels.generators import Generators, available, generated_convolution, supports
from resode.operators.generated import generated
from resode.operators.ties import TIES, tie_basis
from resode.operators.twist import TwistConv2d, coordinates

pytestmark = pytest.mark.skipif(not available(), reason="no C++ compiler")

TIED = [(tie, degree) for tie in TIES for degree in ((1,) if tie == "mixed" else (1, 2))]

# Channels in and out, kernel, stride, padding, dilation, height, width: whole and incomplete vectors of
# channels, images that are not square, larger kernels, strides that do not divide the image.
SHAPES = [
    (16, 16, 3, 1, 1, 1, 8, 8),
    (3, 16, 3, 1, 1, 1, 9, 7),
    (20, 8, 5, 2, 2, 1, 11, 9),
    (32, 32, 3, 2, 1, 2, 12, 8),
    (16, 4, 3, (1, 2), (0, 1), (2, 1), 6, 9),
    (1, 1, 3, 1, 1, 1, 2, 3),
]


def pair(shape, tie="conformal", degree=1, **options):
    """A twist by the operator in single precision, its separate form in double, and an image for each."""
    inputs, outputs, kernel, stride, padding, dilation, height, width = shape
    torch.manual_seed(0)
    mine = TwistConv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        tie=tie,
        degree=degree,
        form="generated",
        **options,
    )
    nn.init.normal_(mine.twist)
    exact = copy.deepcopy(mine).double()
    exact.form = "separate"
    u = torch.randn(4, inputs, height, width).to(memory_format=torch.channels_last)
    return mine, exact, u.requires_grad_(), u.detach().double().requires_grad_()


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("tie", "degree"), TIED)
def test_values_and_gradients_are_those_of_the_twist(shape, tie, degree):
    mine, exact, u, v = pair(shape, tie, degree)
    y, expected = mine(u), exact(v)
    assert supports(u, mine.weight, mine.twist, 1)
    assert "generated_convolution" in y.grad_fn.name()
    g = torch.randn_like(y)
    y.backward(g)
    expected.backward(g.double())
    assert error(y, expected) < 1e-5
    assert error(u.grad, v.grad) < 1e-5
    for a, b in zip(mine.parameters(), exact.parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-5


def test_autocast_computes_in_bf16():
    mine, exact, u, v = pair((16, 32, 3, 1, 1, 1, 8, 8), bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        y = mine(u)
    expected = exact(v)
    assert y.dtype == torch.bfloat16
    g = torch.randn(y.shape)
    y.backward(g.bfloat16())
    expected.backward(g.double())
    assert error(y, expected) < 2e-2
    assert u.grad.dtype == mine.twist.grad.dtype == torch.float32
    assert error(u.grad, v.grad) < 2e-2
    assert error(mine.twist.grad, exact.twist.grad) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES[:5])
@pytest.mark.parametrize("tie", TIES)
def test_the_adjoint_is_the_transpose(dtype, shape, tie):
    inputs, _, kernel, stride, padding, dilation, height, width = shape
    (s, p, d), k = ((x,) * 2 if isinstance(x, int) else x for x in (stride, padding, dilation)), kernel
    size = [
        (n + 2 * q - e * (k - 1) - 1) // t + 1 for n, q, e, t in zip((height, width), p, d, s, strict=True)
    ]
    x, y = coordinates(*size, like=torch.zeros(()))
    factors = torch.stack([x + 0 * y, y + 0 * x])
    basis = torch.tensor(tie_basis(tie, 1, (k, k)))
    generators = Generators(basis, factors, s, p, d)
    torch.manual_seed(0)
    u = torch.randn(3, inputs, height, width).to(dtype).to(memory_format=torch.channels_last)
    features = generators(u)
    v = torch.randn(features.shape).to(dtype)
    back = torch.zeros_like(u)
    generators.add_adjoint(v, back)
    one, other = (features.double() * v.double()).sum(), (u.double() * back.double()).sum()
    scale = features.double().norm() * v.double().norm()
    assert abs(one - other) < (1e-2 if dtype == torch.bfloat16 else 1e-6) * scale
    expected = generated(u.float(), basis.tolist(), factors, (s, p, d, 1))
    torch.testing.assert_close(
        features.float().view(3, *size, -1).permute(0, 3, 1, 2), expected,
        rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5,
    )  # fmt: skip


def test_the_backward_pass_has_the_precision_of_the_forward_pass():
    mine, _, u, _ = pair((16, 16, 3, 1, 1, 1, 8, 8))
    found = []
    for half in (False, True):
        y = mine(u)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found.append(torch.autograd.grad(y.square().sum(), [u, *mine.parameters()]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_get_no_gradient():
    mine, exact, u, v = pair((16, 8, 3, 2, 1, 1, 9, 7))
    mine.weight.requires_grad_(False)
    mine(u.detach()).sum().backward()
    exact(v).sum().backward()
    assert mine.weight.grad is None
    assert error(mine.twist.grad, exact.twist.grad) < 1e-5


def test_the_default_dtype_does_not_matter():
    mine, _, u, _ = pair((16, 16, 3, 1, (2, 2), 2, 7, 6))  # a geometry that no other test has
    torch.set_default_dtype(torch.float64)
    try:
        y = mine(u)
        y.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    wanted, mine.twist.grad = mine.twist.grad, None
    expected = mine(u)
    expected.sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(wanted, mine.twist.grad)


def test_an_empty_batch_is_no_error():
    mine, _, u, _ = pair((16, 16, 3, 1, 1, 1, 8, 8))
    y = mine(u[:0])
    assert y.shape == (0, 16, 8, 8)
    y.sum().backward()
    assert not mine.twist.grad.any()


def test_a_second_derivative_is_that_of_the_twist():
    mine, exact, u, v = pair((4, 3, 3, 1, 1, 1, 5, 5))
    found = []
    for module, image in ((mine, u), (exact, v)):
        assert ("generated_convolution" in module(image).grad_fn.name()) is (module is mine)
        (first,) = torch.autograd.grad(module(image).sin().sum(), image, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), [image, *module.parameters()]))
    for a, b in zip(*found, strict=True):
        assert error(a, b) < 1e-4


def test_auto_chooses_the_operator_where_it_saves_products():
    mine, _, u, _ = pair((16, 16, 3, 1, 1, 1, 8, 8))
    mine.form = "auto"
    assert "generated_convolution" in mine(u).grad_fn.name()
    assert "generated_convolution" not in mine(u.contiguous()).grad_fn.name()
    free = TwistConv2d(16, 16, 3, padding=1, tie="free")
    assert "generated_convolution" not in free(u).grad_fn.name()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_results_are_the_same():
    mine, _, u, _ = pair((16, 16, 3, 1, 1, 1, 8, 8))
    expected = mine(u)
    expected.sum().backward()
    wanted, mine.twist.grad = mine.twist.grad, None
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch.compile(mine, fullgraph=True, backend=backend)(u)
    called = {str(node.target) for node in graphs[0].graph.nodes}
    assert "resode.generated_convolution.default" in called
    torch.compiler.reset()
    y = torch.compile(mine, fullgraph=True)(u)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mine.twist.grad, wanted, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


def test_the_operator_passes_torchs_opcheck():
    mine, _, u, _ = pair((16, 16, 3, 1, 1, 1, 6, 6))
    x, y = coordinates(6, 6, like=u)
    factors = torch.stack([x + 0 * y, y + 0 * x])
    given = u, mine.weight, mine.bias, mine.twist, mine.basis, factors, [1] * 6
    torch.library.opcheck(generated_convolution, given)
