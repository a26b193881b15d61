"""The operator is batch normalisation, to the precision of its dtype."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from resode.kernels.batch_norm import available, batch_norm, supports

pytestmark = pytest.mark.skipif(not available(), reason="no C++ compiler with OpenMP")

EPS = 1e-5
SHAPES = [(8, 16, 32, 32), (3, 48, 7, 5), (2, 112, 4, 4), (1, 512, 3, 5)]  # images, channels, height, width


def plain(x, other, weight, bias, relu):
    """The reference, in operations of torch."""
    y = F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)
    y = y if other is None else y + other
    return F.relu(y) if relu else y


def inputs(shape, dtype, other):
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    x = (2 * normal(*shape) + 5 * normal(1, shape[1], 1, 1)).to(dtype)
    residual = normal(*shape).to(dtype) if other else None
    return x, residual, normal(shape[1]), normal(shape[1]), normal(*shape).to(dtype)


def leaves(*tensors, dtype=None):
    return [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def error(found, expected):
    return float(
        (found.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-12)
    )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_gradients_and_statistics_agree_with_double_precision(shape, dtype, other, relu):
    *given, g = inputs(shape, dtype, other)
    mine, reference = leaves(*given), leaves(*given, dtype=torch.float64)
    y, mean, variance, _ = batch_norm(*mine, EPS, relu)
    expected = plain(*reference, relu)
    if relu:  # where y is a rounding error the two may disagree on which side of zero it lies
        g = torch.where(expected.detach().abs() < 1e-4, torch.zeros_like(g), g)
    y.backward(g)
    expected.backward(g.double())

    tolerance = 5e-3 if dtype == torch.bfloat16 else 2e-6  # half a unit in the last place is 2^-9
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, expected) < tolerance
    double = given[0].double()
    assert error(mean, double.mean((0, 2, 3))) < 1e-6
    assert error(variance, double.var((0, 2, 3), unbiased=True)) < 1e-5
    for found, exact in zip(mine, reference, strict=True):
        if found is not None:
            assert error(found.grad, exact.grad) < tolerance


def test_a_large_mean_costs_no_digits():
    """Sums are taken relative to the first pixel, so a mean of a thousand deviations is harmless."""
    x = torch.randn(16, 16, 16, 16, generator=torch.Generator().manual_seed(0)) + 1000
    *_, variance, _ = batch_norm(x, None, torch.ones(16), torch.zeros(16), EPS, False)
    assert error(variance, x.double().var((0, 2, 3), unbiased=True)) < 1e-5


def test_any_memory_format_gives_the_same_result():
    x, other, weight, bias, _ = inputs((4, 16, 6, 6), torch.float32, True)
    expected = batch_norm(x.to(memory_format=torch.channels_last), other, weight, bias, EPS, True)
    found = batch_norm(
        x.contiguous(), other.transpose(2, 3).contiguous().transpose(2, 3), weight, bias, EPS, True
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_parameters_need_not_be_contiguous():
    x, _, weight, bias, _ = inputs((4, 16, 6, 6), torch.float32, False)
    expected = batch_norm(x, None, weight, bias, EPS, True)
    strided = torch.stack((weight, bias), 1)
    found = batch_norm(x, None, strided[:, 0], strided[:, 1], EPS, True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


SCRIPT = """
import torch
from resode.kernels.batch_norm import batch_norm
from resode.kernels.convolution import available, convolution
torch.set_num_threads(4)
x = torch.randn(8, 16, 8, 8, generator=torch.Generator().manual_seed(0))
_, mean, _, _ = batch_norm(x, None, torch.ones(16), torch.zeros(16), 1e-5, True)
torch.testing.assert_close(mean, x.mean((0, 2, 3)))
if available():
    w = torch.zeros(16, 16, 3, 3, requires_grad=True)
    convolution(x.bfloat16(), w).sum().backward()
    torch.testing.assert_close(w.grad[:, :, 1, 1], x.bfloat16().float().sum((0, 2, 3)).expand(16, 16))
"""


def test_fewer_threads_than_requested_are_enough():
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_nan_in_its_channel(dtype, relu):
    x, _, weight, bias, _ = inputs((4, 16, 6, 6), dtype, False)
    x[2, 3, 4, 5] = float("nan")
    y, mean, variance, _ = batch_norm(x, None, weight, bias, EPS, relu)
    spoilt = torch.arange(16) == 3
    assert torch.equal(y.isnan().any(3).any(2).any(0), spoilt)
    assert torch.equal(mean.isnan(), spoilt)
    assert torch.equal(variance.isnan(), spoilt)


def test_the_same_threads_give_the_same_bits():
    x, other, weight, bias, _ = inputs((8, 16, 32, 32), torch.bfloat16, True)
    one, two = (batch_norm(x, other, weight, bias, EPS, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_operator_passes_torchs_opcheck():
    x, other, weight, bias, _ = inputs((2, 16, 4, 4), torch.float32, True)
    x, other, weight, bias = leaves(x.to(memory_format=torch.channels_last), other, weight, bias)
    torch.library.opcheck(batch_norm, (x, other, weight, bias, EPS, True))
    torch.library.opcheck(batch_norm, (x, None, weight, bias, EPS, False))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 24, 4, 4),  # channels
        torch.zeros(2, 16, 4, 4, dtype=torch.float64),
        torch.zeros(2, 16, 4),
        torch.zeros(1, 16, 1, 1),  # no variance
        torch.zeros(2, 16, 4, 4, device="meta"),
    ],
)
def test_unsupported_inputs_are_recognised(x):
    assert not supports(x, torch.zeros(16), torch.zeros(16))
    assert not supports(torch.zeros(2, 16, 4, 4), None, None)
    assert supports(torch.zeros(2, 16, 4, 4), torch.zeros(16), torch.zeros(16))
