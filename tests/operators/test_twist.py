"""Twist: theorem 9, and the features of a convolution."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resode.errors import InputError
from resode.operators.ties import TIES, monomials, tie_basis
from resode.operators.twist import COORDINATES, TwistConv2d, coordinates

FORMS = ("separate", "stacked", "fused", "generated")
DEGREES = {tie: (1,) if tie == "mixed" else (1, 2, 3) for tie in TIES}
TIED = [(tie, degree) for tie in TIES for degree in DEGREES[tie]]


def rot90(t, times=1):
    return torch.rot90(t, times, (2, 3))


def twist(inputs=4, outputs=6, kernel=3, *, seed=0, zero=False, **options):
    """A float64 twist with random kernels."""
    torch.manual_seed(seed)
    made = TwistConv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options}).double()
    if not zero:
        nn.init.normal_(made.twist)
    return made


def image(height=8, width=8, channels=4, seed=1):
    return torch.randn(2, channels, height, width, generator=torch.manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- ties


def kernels_of(tie, degree=1, kernel=3):
    made = twist(kernel=kernel, tie=tie, degree=degree)
    return dict(zip(monomials(degree), made.kernels(), strict=True))


def test_conformal_saddle_and_mixed_satisfy_their_definitions():
    for tie, flipped in (("conformal", 3), ("saddle", 2), ("mixed", 3)):
        w = kernels_of(tie)
        assert torch.equal(w[0, 1], w[1, 0].transpose(2, 3).flip(flipped)), tie
    mixed = kernels_of("mixed")
    assert torch.equal(mixed[0, 1], -mixed[1, 0])
    corner = torch.tensor([[1.0, 0, -1], [0, 0, 0], [-1, 0, 1]], dtype=torch.float64)
    assert torch.equal(mixed[1, 0], mixed[1, 0][:, :, :1, :1] * corner)  # d2/dxdy, no first derivative


@pytest.mark.parametrize("tie", ["odd", "conformal", "saddle"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_kernels_have_the_parity_of_their_monomial(tie, kernel):
    for (p, q), w in kernels_of(tie, 3, kernel).items():
        assert torch.equal(w.flip(2, 3), (-1) ** (p + q) * w), (p, q)


@pytest.mark.parametrize(("tie", "degree"), TIED)
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_only_free_coefficients_are_stored(tie, degree, kernel):
    basis = torch.tensor(tie_basis(tie, degree, (kernel, kernel)))
    numbers = len(basis)
    assert torch.linalg.matrix_rank(basis.flatten(1)) == numbers if numbers else True
    assert basis.abs().sum(0).max() <= 1  # each entry is one number, up to its sign, or zero
    made = TwistConv2d(4, 6, kernel, tie=tie, degree=degree)
    assert made.twist.shape == (6, 4, numbers)
    assert set(made.state_dict()) == {"weight", "bias", "twist"}


def test_the_free_coefficients_are_counted():
    found = {tie: len(tie_basis(tie, 1, (3, 3))) for tie in TIES}
    assert found == {"free": 18, "odd": 8, "conformal": 4, "saddle": 4, "mixed": 1}


@pytest.mark.parametrize(("tie", "degree"), TIED)
def test_a_tied_kernel_has_the_gradient_of_its_free_coefficients(tie, degree):
    made = twist(2, 2, tie=tie, degree=degree)
    u = image(4, 5, 2)[:1]
    parameters = {name: p.detach().requires_grad_() for name, p in made.named_parameters()}

    def value(*values):
        return torch.func.functional_call(made, dict(zip(parameters, values, strict=True)), (u,)).tanh().sum()

    assert torch.autograd.gradcheck(value, tuple(parameters.values()))


# ---------------------------------------------------------------- coordinates


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_centred_coordinates_are_antisymmetric_and_share_a_unit(height, width, dtype):
    for kind in ("centred", "per-axis"):
        x, y = coordinates(height, width, kind, like=torch.empty(0, dtype=dtype))
        assert torch.equal(x, -x.flip(1))
        assert torch.equal(y, -y.flip(0))
        assert x.abs().max() < 0.5
        assert y.abs().max() < 0.5
    x, y = coordinates(height, width, like=torch.empty(0, dtype=torch.float64))
    if min(height, width) > 1:
        torch.testing.assert_close(x[0, 1] - x[0, 0], y[1, 0] - y[0, 0])


def test_published_coordinates():
    x, y = coordinates(2, 4, "published", like=torch.empty(0, dtype=torch.float64))
    assert x.tolist() == [[-0.5, -0.25, 0, 0.25]]
    assert y.tolist() == [[-0.5], [0]]


# ---------------------------------------------------------------- the operator


def test_the_operator_is_the_formula():
    made = twist(tie="free", degree=2, stride=2)
    u = image(9, 7)
    y = nn.functional.conv2d(u, made.weight, made.bias, 2, 1)
    x_of, y_of = coordinates(5, 4, like=u)
    for (p, q), w in zip(made.terms, made.kernels(), strict=True):
        y = y + x_of**p * y_of**q * nn.functional.conv2d(u, w, None, 2, 1)
    for form in FORMS:
        made.form = form
        torch.testing.assert_close(made(u), y, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    tie=st.sampled_from(TIES),
    degree=st.integers(1, 3),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    padding=st.integers(0, 2),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
    kind=st.sampled_from(COORDINATES),
    size=st.tuples(st.integers(9, 12), st.integers(9, 12)),
)
def test_all_forms_are_the_same_operator_with_the_same_gradients(
    tie, degree, kernel, kind, size, mode, **options
):
    degree = min(degree, DEGREES[tie][-1])
    made = twist(4, 6, kernel, tie=tie, degree=degree, coordinates=kind, padding_mode=mode, **options)
    u = image(*size).requires_grad_()
    found = []
    for form in FORMS:
        made.form = form
        y = made(u)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        found.append((y, *torch.autograd.grad((y * weights).sum(), [u, *made.parameters()])))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("tie", TIES)
def test_zero_kernels_are_the_plain_convolution(tie, stride, mode):
    options = {"stride": stride, "padding_mode": mode, "groups": 2}
    made = twist(tie=tie, zero=True, **options)
    plain = nn.Conv2d(4, 6, 3, padding=1, **options).double()
    plain.load_state_dict({"weight": made.weight, "bias": made.bias})
    u = image(9, 8)
    made.form = "separate"
    assert torch.equal(made(u), plain(u))
    for form in ("stacked", "fused"):
        made.form = form
        torch.testing.assert_close(made(u), plain(u), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_rotation_identity(form, mode):
    """R T(W, Wx, Wy) = T(R W, R Wy, -R Wx) R on square images."""
    made, turned = (twist(tie="free", form=form, padding_mode=mode) for _ in range(2))
    wx, wy = made.kernels()
    with torch.no_grad():
        turned.weight.copy_(rot90(made.weight))
        turned.twist.copy_(torch.stack((rot90(wy), -rot90(wx)), 2).flatten(2))
    u = image()
    torch.testing.assert_close(rot90(made(u)), turned(rot90(u)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_conformal_twists_with_symmetric_kernels_commute_with_rotations(degree, form, size):
    made = twist(tie="conformal", degree=degree, form=form)
    with torch.no_grad():
        made.weight.copy_(sum(rot90(made.weight, k) for k in range(4)))
    u = image(*size)
    torch.testing.assert_close(rot90(made(u)), made(rot90(u)), rtol=0, atol=1e-11)


def test_other_ties_do_not_commute_with_rotations():
    for tie in ("free", "odd", "saddle"):
        made = twist(tie=tie)
        with torch.no_grad():
            made.weight.copy_(sum(rot90(made.weight, k) for k in range(4)))
        assert (rot90(made(image())) - made(rot90(image()))).abs().max() > 0.1, tie


def test_a_conformal_twist_rotates_and_scales():
    """Wx = a d/dx + b d/dy gives a (X d/dx + Y d/dy) u + b (X d/dy - Y d/dx) u, exactly on linear images."""
    made = twist(1, 1, zero=True, bias=False)
    a, b = 0.3, -0.7
    basis = made.basis[:, 0].reshape(-1, 9)
    wanted = torch.zeros(3, 3, dtype=torch.float64)
    wanted[1, 0], wanted[1, 2], wanted[0, 1], wanted[2, 1] = -a / 2, a / 2, -b / 2, b / 2
    with torch.no_grad():
        made.weight.zero_()
        made.twist.copy_(torch.linalg.lstsq(basis.T, wanted.flatten()).solution)
    torch.testing.assert_close(made.kernels()[0, 0, 0], wanted)
    rows, columns = torch.meshgrid(*[torch.arange(7, dtype=torch.float64)] * 2, indexing="ij")
    u = 2 * columns + 5 * rows  # d/dx = 2, d/dy = 5 a pixel
    x, y = coordinates(7, 7, like=u)
    expected = a * (x * 2 + y * 5) + b * (x * 5 - y * 2)
    torch.testing.assert_close(made(u[None, None])[0, 0, 1:-1, 1:-1], expected[1:-1, 1:-1])


# ---------------------------------------------------------------- as a module


@pytest.mark.parametrize("form", FORMS)
def test_the_image_size_may_change_between_calls(form):
    made = twist(form=form, stride=2)
    for size in ((8, 8), (5, 12), (8, 8), (3, 3), (1, 1)):
        assert made(image(*size)).shape == (2, 6, (size[0] + 1) // 2, (size[1] + 1) // 2)
        assert made(image(*size)).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives(form):
    made = twist(2, 2, form=form)
    assert torch.autograd.gradgradcheck(made, (image(4, 4, 2)[:1].requires_grad_(),))


@pytest.mark.parametrize("form", FORMS)
def test_bf16_autocast_is_near_and_gives_gradients_in_full_precision(form):
    made = twist(form=form).float()
    u = image().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(u)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert made.twist.grad.dtype == u.grad.dtype == torch.float32
    exact = made(u)
    assert (y.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_survives_deepcopy_channels_last_and_a_state_dict(form):
    made = twist(form=form)
    u = image()
    other = TwistConv2d(4, 6, 3, padding=1, form=form).double()
    other.load_state_dict(made.state_dict())
    for module in (copy.deepcopy(made), other, copy.deepcopy(made).to(memory_format=torch.channels_last)):
        torch.testing.assert_close(
            module(u.to(memory_format=torch.channels_last)), made(u), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("form", FORMS)
def test_survives_compilation_and_export_as_one_graph(form):
    made = twist(form=form).float()
    u = image().float().requires_grad_()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(module(u).square().sum(), [u, made.twist]) for module in (made, compiled)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(made.eval(), (u.detach(),)).module()
    torch.testing.assert_close(exported(u.detach()), made(u.detach()))
    torch.compiler.reset()


def kept(module, u):
    """The bytes that autograd keeps for the backward pass, besides the parameters."""
    seen = {}
    own = {p.data_ptr() for p in module.parameters()}

    def pack(t):
        if t.data_ptr() not in own:
            seen[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(u)
    assert y.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize("form", FORMS)
def test_only_the_image_is_kept_for_the_backward_pass(form):
    u = image(64, 64, 8).float().requires_grad_()
    made = twist(8, 8, form=form).float()
    assert kept(made, u) < 1.25 * u.numel() * 4  # and coordinates, which no batch multiplies


def test_a_twist_of_a_convolution_has_its_parameters_and_its_mode():
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="circular").eval()
    plain.weight.requires_grad_(False)
    made = TwistConv2d.of(plain, tie="odd", form="separate")
    assert made.weight is plain.weight
    assert made.bias is plain.bias
    assert not made.training
    assert not made.twist.requires_grad
    assert torch.equal(made(image().float()), plain(image().float()))
    assert "tie=odd" in repr(made)
    assert "stride=(2, 2)" in repr(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie": "confrmal"}, "unknown tie 'confrmal'; did you mean 'conformal'"),
        ({"coordinates": "center"}, "unknown coordinates 'center'"),
        ({"form": "three"}, "unknown form 'three'"),
        ({"degree": 0}, "degree 0; a positive integer"),
        ({"degree": True}, "degree True; a positive integer"),
        ({"tie": "mixed", "degree": 2}, "the mixed tie is of degree 1"),
        ({"kernel_size": (3, 5)}, "have to be square, not 3x5; take odd or free"),
    ],
)
def test_invalid_options_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        TwistConv2d(4, 6, **{"kernel_size": 3, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_one_image_without_a_batch(form):
    made = twist(form=form)
    u = image()
    torch.testing.assert_close(made(u[0]), made(u)[0])


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_under_autocast(form):
    made = twist(form=form).float()
    with torch.autocast("cpu", torch.bfloat16):
        u = image().bfloat16().requires_grad_()
        y = made(u).float().square().sum()
    (first,) = torch.autograd.grad(y, u, create_graph=True)
    first.float().square().sum().backward()
    assert made.twist.grad.isfinite().all()
    assert made.twist.grad.abs().max() > 0
