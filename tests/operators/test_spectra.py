"""Theorems about the norms of convolutions: a bound with zero padding, exact on periodic images."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resode.errors import InputError
from resode.operators.spectra import norm_bound, project


def matrix(weight, size, boundary, groups=1):
    """The matrix of a 3x3 convolution on images of a size, from the definition."""
    channels = weight.shape[1] * groups
    basis = torch.eye(channels * size[0] * size[1], dtype=weight.dtype).unflatten(1, (channels, *size))
    mode = {"zero": "constant", "periodic": "circular"}[boundary]
    padded = F.pad(basis, (1, 1, 1, 1), mode=mode)
    return F.conv2d(padded, weight, groups=groups).flatten(1).T


def true_norm(weight, size, boundary, groups=1):
    return torch.linalg.matrix_norm(matrix(weight, size, boundary, groups), 2).item()


def kernels(outputs, inputs, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs * groups, inputs, 3, 3, generator=generator, dtype=torch.float64)


sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
weights = st.builds(kernels, st.integers(1, 3), st.integers(1, 3), st.just(1), st.integers(0, 9999))


@settings(deadline=None, max_examples=40)
@given(weights, sizes)
def test_the_bound_is_exact_on_periodic_images(weight, size):
    true = true_norm(weight, size, "periodic")
    assert norm_bound(weight, size, "periodic") == pytest.approx(true, rel=1e-10)


@settings(deadline=None, max_examples=40)
@given(weights, sizes)
def test_with_zero_padding_it_is_a_bound(weight, size):
    assert true_norm(weight, size, "zero") <= norm_bound(weight, size, "zero") * (1 + 1e-12)


@pytest.mark.parametrize("boundary", ["zero", "periodic"])
def test_a_grouped_convolution_has_the_norm_of_its_largest_group(boundary):
    weight = kernels(2, 3, 4, seed=0)
    largest = max(norm_bound(part, (4, 5), boundary) for part in weight.chunk(4))
    assert norm_bound(weight, (4, 5), boundary, groups=4) == pytest.approx(largest, rel=1e-12)
    true = true_norm(weight, (4, 5), boundary, groups=4)
    assert true <= largest * (1 + 1e-12)
    assert boundary == "zero" or true == pytest.approx(largest, rel=1e-10)


def test_at_image_size_the_maximum_over_frequencies_is_no_bound():
    laplacian = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    laplacian[0, 0, :, 1] = torch.tensor([-1.0, 2.0, -1.0])
    true = true_norm(laplacian, (3, 3), "zero")  # 2 + 2 cos(pi / 4), attained by an alternating image
    assert true == pytest.approx(2 + 2**0.5)
    at_image_size = norm_bound(laplacian, (3, 3), "periodic")  # 2 - 2 cos(2 pi / 3): 3 rows cannot alternate
    assert at_image_size == pytest.approx(3)
    assert at_image_size < true <= norm_bound(laplacian, (3, 3), "zero")


def test_the_bound_tightens_as_the_image_grows():
    weight = kernels(2, 2, 1, seed=1)
    gaps = [
        norm_bound(weight, size, "zero") - true_norm(weight, size, "zero")
        for size in ((2, 2), (5, 5), (12, 12))
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_a_1x1_kernel_has_the_norm_of_its_matrix():
    weight = torch.randn(4, 3, 1, 1, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(weight[:, :, 0, 0], 2).item()
    for boundary in ("zero", "periodic"):
        assert norm_bound(weight, (3, 4), boundary) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(weights, sizes, st.sampled_from(["zero", "periodic"]), st.sampled_from([torch.float32, torch.float64]))
def test_a_projected_kernel_keeps_its_direction_and_the_bound(weight, size, boundary, dtype):
    weight = weight.to(dtype)
    bound = norm_bound(weight, size, boundary) / 3
    projected = project(weight, bound, size, boundary)
    assert projected.dtype is dtype
    assert bound * (1 - 1e-5) <= norm_bound(projected, size, boundary) <= bound
    torch.testing.assert_close(projected * 3, weight)


def test_a_kernel_within_the_bound_is_unchanged():
    weight = kernels(2, 2, 1, seed=2)
    bound = norm_bound(weight, (4, 4), "zero")
    assert torch.equal(project(weight, bound, (4, 4), "zero"), weight)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda w: norm_bound(w, (4, 4), "perodic"), "unknown boundary 'perodic'; did you mean 'periodic'"),
        (lambda w: norm_bound(w, (4, 4), "zero", groups=3), "3 groups do not divide the 4 channels"),
        (lambda w: norm_bound(w / 0, (4, 4), "zero"), "not finite"),
        (lambda w: project(w, 0.0, (4, 4), "zero"), "a positive bound is needed"),
    ],
)
def test_mistakes_are_one_line(mistake, message):
    with pytest.raises(InputError, match=message) as error:
        mistake(torch.ones(4, 4, 3, 3))
    assert "\n" not in str(error.value)
