"""Theorems about the normalisations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resode.errors import InputError
from resode.fields.norms import BatchNorm, GroupNorm, TvNorm, norm_of, norms, tv_norm


def definition(y, norm):
    """TvNorm as the paper writes it."""
    scale = 1 if norm.weight is None else norm.weight[:, None, None]
    return y / torch.sqrt((y**2).sum(1, keepdim=True) + norm.eps) * scale + norm.bias[:, None, None]


def tv(channels, dtype=torch.float64, **options):
    norm = TvNorm(**options).build(channels).to(dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.booleans(),
    st.booleans(),
)
def test_tv_norm_is_its_definition_values_and_gradients(batch, channels, size, scale, channels_last):
    norm = tv(channels, scale=scale)
    y = torch.randn(batch, channels, *size, dtype=torch.float64)
    if channels_last:
        y = y.contiguous(memory_format=torch.channels_last)
    y.requires_grad_()
    g = torch.randn_like(y)
    inputs = (y, *norm.parameters())
    torch.testing.assert_close(norm(y), definition(y, norm))
    ours, plain = (torch.autograd.grad(f, inputs, g) for f in (norm(y), definition(y, norm)))
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("scale", [True, False])
def test_tv_norm_passes_gradcheck(scale):
    norm = tv(3, scale=scale)
    y = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, *_: norm(y), (y, *norm.parameters()))


def test_tv_norm_of_nothing_is_its_bias_with_a_finite_gradient():
    norm = tv(3, torch.float32, eps=1e-4)
    y = torch.zeros(1, 3, 2, 2, requires_grad=True)
    torch.testing.assert_close(norm(y), norm.bias[:, None, None].expand(1, 3, 2, 2))
    (gradient,) = torch.autograd.grad(norm(y).sum(), y)
    torch.testing.assert_close(gradient, norm.weight[:, None, None].expand(1, 3, 2, 2) * 100)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tv_norm_sums_in_single_precision(scale, dtype):
    norm = tv(64, torch.float32, scale=scale)
    y = (300 * torch.randn(2, 64, 3, 3)).to(dtype).requires_grad_()  # squares overflow half precision
    exact = definition(y.float(), norm)
    assert norm(y).dtype is dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(norm(y).float(), exact, rtol=eps, atol=eps)
    g = torch.randn_like(y)
    ours = torch.autograd.grad(norm(y), (y, *norm.parameters()), g)
    plain = torch.autograd.grad(exact, (y, *norm.parameters()), g.float())
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(
            mine.float(), theirs.float(), rtol=4 * eps, atol=4 * eps * theirs.abs().max()
        )


@pytest.mark.parametrize("scale", [True, False])
def test_tv_norm_keeps_channels_last(scale):
    norm = tv(4, torch.float32, scale=scale)
    y = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(y).square().sum(), y)
    assert norm(y).is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_tv_norm_keeps_one_state_for_the_way_back():
    saved = []
    y = torch.randn(2, 8, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        TvNorm().build(8)(y)
    assert sum(saved) == y.numel() * (1 + 1 / 8) + 2 * 8  # and weight and bias


def test_a_scale_that_is_one_is_not_stored():
    assert set(TvNorm(scale=False).build(4).state_dict()) == {"bias"}
    assert set(TvNorm().build(4).state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("name", norms.names())
def test_every_norm_has_a_weight_and_a_bias_and_keeps_the_shape(name):
    norm = norms.build(name).build(12)
    assert {n for n, _ in norm.named_parameters()} == {"weight", "bias"}
    y = torch.randn(3, 12, 4, 5)
    assert norm(y).shape == y.shape


def test_batch_and_group_norms_are_those_of_torch():
    y = torch.randn(4, 6, 3, 3)
    batch, group = BatchNorm(eps=1e-4, momentum=0.2).build(6), GroupNorm(groups=3, eps=1e-4).build(6)
    assert isinstance(batch, nn.BatchNorm2d)
    torch.testing.assert_close(
        batch(y), torch.nn.functional.batch_norm(y, None, None, training=True, eps=1e-4)
    )
    torch.testing.assert_close(batch.running_mean, 0.2 * y.mean((0, 2, 3)))
    torch.testing.assert_close(group(y), torch.nn.functional.group_norm(y, 3, eps=1e-4))


def test_group_norm_needs_no_gradient_of_its_input():
    norm = GroupNorm(groups=2).build(8)
    y = torch.randn(2, 8, 3, 4).contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(y)
    alone = torch.autograd.grad(norm(y), tuple(norm.parameters()), g)  # torch's own kernel crashes here
    y.requires_grad_()
    _, *beside = torch.autograd.grad(norm(y), (y, *norm.parameters()), g)
    torch.testing.assert_close(alone, tuple(beside))
    torch.testing.assert_close(norm(y.detach()), norm(y))


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 6), (7, 7), (11, 1), (22, 2)])
def test_left_out_the_groups_are_the_largest_divisor_up_to_eight(channels, groups):
    assert GroupNorm().build(channels).num_groups == groups


@pytest.mark.parametrize(
    ("data", "norm"),
    [
        ("tv", TvNorm()),
        ({"name": "tv", "eps": 1e-4, "scale": False}, TvNorm(1e-4, scale=False)),
        ({"name": "group", "groups": 4}, GroupNorm(4)),
        ({"name": "batch", "momentum": 0.01}, BatchNorm(momentum=0.01)),
    ],
)
def test_plain_data_there_and_back(data, norm):
    assert norm_of(data) == norm
    assert norm.to_data() == data
    assert norm_of(norm) is norm


def test_no_norm_is_none():
    assert norm_of(None) is None


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda: norm_of("bacth"),
            r"unknown norm 'bacth'; did you mean 'batch'\? \(batch, group, tv, or null",
        ),
        (lambda: norm_of("none"), "unknown norm 'none'.*or null for none"),
        (lambda: norm_of({"name": "vt"}), "unknown norm 'vt'; did you mean 'tv'"),
        (lambda: norm_of({"name": "tv", "epsilon": 1}), "tv has no option 'epsilon'; did you mean 'eps'"),
        (lambda: norm_of({"eps": 1}), "a norm needs a name"),
        (lambda: norm_of(3), "norm 3: expected a name"),
        (lambda: TvNorm(eps=0), "TvNorm: eps 0; a positive number is needed"),
        (lambda: TvNorm(scale="no"), "TvNorm: scale 'no'; true or false is needed"),
        (lambda: BatchNorm(eps=-1), "BatchNorm: eps -1"),
        (lambda: BatchNorm(momentum=2), "BatchNorm: momentum 2; a number from 0 to 1 is needed"),
        (lambda: GroupNorm(groups=0), "GroupNorm: 0 groups"),
        (
            lambda: GroupNorm(groups=3).build(8),
            "GroupNorm: 3 groups do not divide 8 channels; choose a divisor",
        ),
    ],
)
def test_mistakes_are_one_line(mistake, message):
    with pytest.raises(InputError, match=message) as error:
        mistake()
    assert "\n" not in str(error.value)


def test_a_second_derivative_through_tvnorm_is_that_of_the_plain_form():
    """Hessian times vector, also where the first derivative is no leaf of the second."""
    torch.manual_seed(0)
    norm = TvNorm().build(4).double()
    y, v = (torch.randn(2, 4, 3, 3, dtype=torch.float64) for _ in range(2))
    ours = torch.autograd.functional.hvp(lambda y: (norm(y) ** 3).sum(), y, v)[1]
    plain = torch.autograd.functional.hvp(
        lambda y: (tv_norm(y, norm.weight, norm.bias, 1e-3) ** 3).sum(), y, v
    )[1]
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
