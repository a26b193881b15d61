"""The operator is torch's 3x3 convolution, with a kernel gradient of single precision."""

import pytest
import torch
from torch.nn import functional as F

from resode.kernels.convolution import available, convolution, convolve, fits

pytestmark = pytest.mark.skipif(not available(), reason="no matrix units for bf16, or no C++ compiler")

# Images, channels in and out, height, width: one pair of pixels, odd heights, more images than are multiplied
# at once and some that are left over, lines whose length is a multiple of a page, unequal channels.
SHAPES = [
    (1, 16, 16, 1, 2),
    (5, 32, 48, 6, 10),
    (7, 64, 16, 3, 4),
    (37, 64, 64, 8, 8),
    (3, 16, 32, 32, 32),
    (2, 16, 16, 63, 62),
    (130, 16, 16, 4, 4),
    (2, 128, 128, 8, 6),
    (130, 128, 144, 2, 2),  # wide, and a last group of fewer images
]


def inputs(shape):
    images, channels, outputs, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    x, g = (normal(images, c, height, width).bfloat16() for c in (channels, outputs))
    return x.to(memory_format=torch.channels_last), normal(outputs, channels, 3, 3), g


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_the_kernel_is_exact_to_single_precision(shape):
    x, weight, g = inputs(shape)
    weight.requires_grad_()
    convolution(x, weight).backward(g)
    exact = torch.zeros_like(weight, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), exact, padding=1).backward(g.double())
    assert error(weight.grad, exact.grad) < 5e-6


@pytest.mark.parametrize("shape", [*SHAPES, (3, 48, 80, 5, 7), (2, 16, 16, 1, 1)])
@pytest.mark.parametrize("adjoint", [False, True])
def test_our_values_are_exact_to_their_rounding(shape, adjoint):
    x, weight, g = inputs(shape)
    exact = F.conv_transpose2d if adjoint else F.conv2d
    given = (g if adjoint else x).contiguous(memory_format=torch.channels_last)
    expected = exact(given.double(), weight.bfloat16().double(), padding=1)
    found = convolve(given, weight, adjoint=adjoint)
    assert found.is_contiguous(memory_format=torch.channels_last)
    slack = expected.abs().max() * 1e-6  # of sums in single precision, where much cancels
    assert torch.all((found - expected).abs() <= expected.abs() / 256 + slack)


def test_the_default_type_of_numbers_does_not_matter_to_a_gradient():
    shape = (3, 128, 144, 4, 4)
    x, weight, g = inputs(shape)
    weight.requires_grad_()
    torch.set_default_dtype(torch.float64)
    try:
        convolution(x, weight).backward(g)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(weight.grad, gradient(shape))


def test_what_is_not_finite_stays_where_a_convolution_takes_it():
    x, weight, _ = inputs((2, 16, 16, 4, 4))
    x[0, 3, 1, 1] = torch.inf
    found, expected = convolve(x, weight), F.conv2d(x.double(), weight.bfloat16().double(), padding=1)
    assert torch.equal(found.isfinite(), expected.isfinite())


@pytest.mark.parametrize("shape", SHAPES[:6])
def test_values_and_the_gradient_of_the_image_are_torchs(shape):
    x, weight, g = inputs(shape)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = convolution(mine, weight)
    expected = F.conv2d(other, weight.bfloat16(), padding=1)
    y.backward(g)
    expected.backward(g)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-2, atol=1e-2)


def test_what_was_multiplied_before_leaves_nothing():
    """Each thread keeps its workspace: a small batch after a large one finds zeros where it needs them."""
    alone = {shape: gradient(shape) for shape in SHAPES}
    for shape in reversed(SHAPES):
        assert torch.equal(gradient(shape), alone[shape])


def gradient(shape):
    x, weight, g = inputs(shape)
    weight.requires_grad_()
    convolution(x, weight).backward(g)
    return weight.grad


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


def test_any_layout_in_memory_gives_the_same():
    x, weight, g = inputs((4, 16, 32, 6, 6))
    weight.requires_grad_()
    convolution(x.contiguous(), weight).backward(g.transpose(2, 3).contiguous().transpose(2, 3))
    assert torch.equal(weight.grad, gradient((4, 16, 32, 6, 6)))


def test_the_operator_is_what_torch_asks_of_one():
    x, weight, _ = inputs((2, 16, 32, 4, 4))
    torch.library.opcheck(convolution, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(2, 24, 4, 4).bfloat16(), torch.zeros(16, 24, 3, 3)),  # channels
        (torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(24, 16, 3, 3)),
        (torch.zeros(2, 16, 4, 5).bfloat16(), torch.zeros(16, 16, 3, 3)),  # an odd width
        (torch.zeros(2, 16, 4, 4), torch.zeros(16, 16, 3, 3)),  # fp32
        (torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(16, 16, 3, 3).bfloat16()),
        (torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(16, 16, 1, 1)),
        (torch.zeros(1, 1024, 2, 2).bfloat16(), torch.zeros(512, 1024, 3, 3)),  # wide
        (torch.zeros(2, 32, 4, 4).bfloat16(), torch.zeros(32, 16, 3, 3)),  # groups
        (torch.zeros(2, 16, 4, 4, device="meta").bfloat16(), torch.zeros(16, 16, 3, 3)),
    ],
)
def test_it_says_what_it_does_not_take(x, weight):
    assert not fits(x, weight)
    assert fits(torch.zeros(2, 16, 4, 4).bfloat16(), torch.zeros(32, 16, 3, 3))
