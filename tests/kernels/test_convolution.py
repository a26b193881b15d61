"""The operator is torch's 3x3 convolution, with a kernel gradient in single precision."""

import pytest
import torch
from torch.nn import functional as F

from resode.kernels.convolution import available, convolution, convolution_backward, convolve, supports

pytestmark = pytest.mark.skipif(not available(), reason="no bf16 instructions, or no C++ compiler")

# Images, channels in and out, height, width, and the stride if it is not one: one pair of pixels, odd
# heights, more images than one group and an incomplete last group, lines whose length is a multiple of a
# page, unequal channels.
SHAPES = [
    (1, 16, 16, 1, 2),
    (5, 32, 48, 6, 10),
    (7, 64, 16, 3, 4),
    (37, 64, 64, 8, 8),
    (3, 16, 32, 32, 32),
    (2, 16, 16, 63, 62),
    (130, 16, 16, 4, 4),
    (2, 128, 128, 8, 6),
    (130, 128, 144, 2, 2),  # many channels, and a last group of fewer images
]
STRIDED = [
    (1, 16, 16, 2, 4, 2),
    (5, 32, 48, 6, 12, 2),
    (130, 48, 16, 4, 4, 2),
    (3, 16, 32, 32, 32, 2),
    (37, 64, 128, 16, 16, 2),
]
FEW_CHANNELS = [(3, 3, 16, 32, 32), (1, 1, 16, 5, 6), (9, 5, 48, 7, 10), (131, 4, 32, 2, 2)]


def inputs(shape):
    images, channels, outputs, height, width, stride = (*shape, 1)[:6]
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    x = normal(images, channels, height, width).bfloat16()
    g = normal(images, outputs, height // stride, width // stride).bfloat16()
    return x.to(memory_format=torch.channels_last), normal(outputs, channels, 3, 3), g


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("shape", [*SHAPES, *STRIDED, *FEW_CHANNELS])
def test_the_kernel_gradient_is_exact_to_single_precision(shape):
    x, weight, g = inputs(shape)
    stride = (*shape, 1)[5]
    weight.requires_grad_()
    convolution(x, weight, stride).backward(g)
    exact = torch.zeros_like(weight, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), exact, stride=stride, padding=1).backward(g.double())
    assert error(weight.grad, exact.grad) < 5e-6


MORE = [*SHAPES, *STRIDED, (3, 48, 80, 5, 7), (2, 16, 16, 1, 1)]


@pytest.mark.parametrize("kernel", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("shape", "adjoint"),
    [*((each, True) for each in MORE), *((each, False) for each in [*MORE, *FEW_CHANNELS])],
)
def test_convolve_is_exact_to_its_rounding(shape, adjoint, kernel):
    x, weight, g = inputs(shape)
    stride = (*shape, 1)[5]
    given = (g if adjoint else x).contiguous(memory_format=torch.channels_last)
    factor = weight.bfloat16().double()
    if adjoint:
        more = {"stride": stride, "padding": 1, "output_padding": stride - 1}
        expected = F.conv_transpose2d(given.double(), factor, **more)
    else:
        expected = F.conv2d(given.double(), factor, stride=stride, padding=1)
    weight = weight.contiguous(memory_format=kernel)
    found = convolve(given, weight, stride, adjoint=adjoint)
    assert found.is_contiguous(memory_format=torch.channels_last)
    slack = expected.abs().max() * 1e-6  # of sums in single precision, where much cancels
    assert torch.all((found - expected).abs() <= expected.abs() / 256 + slack)


def test_the_default_dtype_does_not_matter():
    shape = (3, 128, 144, 4, 4)
    x, weight, g = inputs(shape)
    weight.requires_grad_()
    torch.set_default_dtype(torch.float64)
    try:
        convolution(x, weight).backward(g)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(weight.grad, gradient(shape))


def test_infinity_spreads_as_in_a_convolution():
    x, weight, _ = inputs((2, 16, 16, 4, 4))
    x[0, 3, 1, 1] = torch.inf
    found, expected = convolve(x, weight), F.conv2d(x.double(), weight.bfloat16().double(), padding=1)
    assert torch.equal(found.isfinite(), expected.isfinite())


@pytest.mark.parametrize("shape", [*SHAPES[:6], *STRIDED[:3]])
def test_values_and_image_gradient_agree_with_torch(shape):
    x, weight, g = inputs(shape)
    stride = (*shape, 1)[5]
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = convolution(mine, weight, stride)
    expected = F.conv2d(other, weight.bfloat16(), stride=stride, padding=1)
    y.backward(g)
    expected.backward(g)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-2, atol=1e-2)


def test_earlier_calls_have_no_effect():
    """Each thread reuses its workspace: a small batch after a large one finds zeros where it needs them."""
    shapes = [*SHAPES, *STRIDED, *FEW_CHANNELS]
    alone = {shape: (gradient(shape), values(shape)) for shape in shapes}
    for shape in reversed(shapes):
        assert torch.equal(gradient(shape), alone[shape][0])
        assert torch.equal(values(shape), alone[shape][1])


def gradient(shape):
    x, weight, g = inputs(shape)
    weight.requires_grad_()
    convolution(x, weight, (*shape, 1)[5]).backward(g)
    return weight.grad


def values(shape):
    x, weight, _ = inputs(shape)
    return convolve(x, weight, (*shape, 1)[5])


def test_any_number_of_threads_gives_the_same_up_to_rounding():
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gradient((7, 16, 32, 6, 6)))
    finally:
        torch.set_num_threads(threads)
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-5, atol=1e-4)


def test_any_memory_format_gives_the_same_result():
    x, weight, g = inputs((4, 16, 32, 6, 6))
    weight.requires_grad_()
    convolution(x.contiguous(), weight).backward(g.transpose(2, 3).contiguous().transpose(2, 3))
    assert torch.equal(weight.grad, gradient((4, 16, 32, 6, 6)))


def test_the_operator_passes_torchs_opcheck():
    x, weight, g = inputs((2, 16, 32, 4, 4, 2))
    torch.library.opcheck(convolution_backward, (g, x, weight, 2, True))
    torch.library.opcheck(convolution, (x.requires_grad_(), weight.requires_grad_(), 2))


@pytest.mark.parametrize(
    ("x", "weight", "stride"),
    [
        (torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(16, 3, 3, 3), 1),  # few, with a gradient
        (torch.zeros(2, 3, 4, 4).bfloat16(), torch.zeros(16, 3, 3, 3), 2),
        (torch.zeros(2, 16, 4, 6).bfloat16(), torch.zeros(16, 16, 3, 3), 2),  # an odd width then
        (torch.zeros(2, 16, 5, 4).bfloat16(), torch.zeros(16, 16, 3, 3), 2),
        (torch.zeros(2, 16, 9, 12).bfloat16(), torch.zeros(16, 16, 3, 3), 3),
        (torch.zeros(2, 24, 4, 4).bfloat16(), torch.zeros(16, 24, 3, 3), 1),  # channels
        (torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(24, 16, 3, 3), 1),
        (torch.zeros(2, 16, 4, 5).bfloat16(), torch.zeros(16, 16, 3, 3), 1),  # an odd width
        (torch.zeros(2, 16, 4, 4).double(), torch.zeros(16, 16, 3, 3), 1),
        (torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(16, 16, 3, 3).bfloat16(), 1),
        (torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(16, 16, 1, 1), 1),
        (torch.zeros(1, 1024, 2, 2).bfloat16(), torch.zeros(512, 1024, 3, 3), 1),  # wide
        (torch.zeros(2, 32, 4, 4).bfloat16(), torch.zeros(32, 16, 3, 3), 1),  # groups
        (torch.zeros(2, 16, 4, 4, device="meta").bfloat16(), torch.zeros(16, 16, 3, 3), 1),
    ],
)
def test_unsupported_inputs_are_recognised(x, weight, stride):
    assert not supports(x, weight, stride)
    assert supports(torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(32, 16, 3, 3), 2)
    assert supports(torch.zeros(2, 3, 4, 4), torch.zeros(32, 3, 3, 3))
