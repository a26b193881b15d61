"""A kernel built from stencils is read as what it was built from."""

import math

import pytest
import torch
from torch import nn

import resode
from resode import analysis
from resode.analysis import pde
from resode.analysis.decomposition import INDEPENDENT, INDEPENDENT_SMOOTHING
from resode.errors import InputError
from resode.fields import Antisymmetric, fields
from resode.fields.convolutions import Convolution
from resode.operators.stencils import PARTS, kernels
from resode.operators.twist import TwistConv2d


def convolution(weight, **options):
    outputs, inputs = weight.shape[:2]
    made = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, dtype=weight.dtype, **options)
    made.weight = nn.Parameter(weight)
    return made


def random_weight(*shape, seed=0):
    return torch.randn(*shape, 3, 3, generator=torch.manual_seed(seed), dtype=torch.float64)


def read(module):
    (row,) = pde(nn.Sequential(module))
    return row


@pytest.mark.parametrize("part", PARTS)
def test_a_kernel_of_one_part_has_the_share_1_of_it(part):
    c = torch.zeros(4, 3, 3, 3, dtype=torch.float64)
    for order in PARTS[part]:
        c[(..., *order)] = random_weight(4, 3)[..., 0, 0]
    row = read(convolution(kernels(c)))
    assert row.shares == pytest.approx({name: float(name == part) for name in PARTS}, abs=1e-13)
    assert row.strength == pytest.approx(c.square().sum((1, 2, 3)).mean().sqrt().item(), rel=1e-12)


def test_shares_sum_to_1_and_channels_have_no_order():
    weight = random_weight(6, 5)
    row = read(convolution(weight))
    assert sum(row.shares.values()) == pytest.approx(1, abs=1e-12)
    outputs, inputs = (torch.randperm(n, generator=torch.manual_seed(1)) for n in (6, 5))
    permuted = read(convolution(weight[outputs][:, inputs]))
    assert list(permuted.shares.values()) == pytest.approx(list(row.shares.values()), rel=1e-12)
    assert (permuted.strength, permuted.smoothing) == pytest.approx((row.strength, row.smoothing), rel=1e-12)
    scaled = read(convolution(-3 * weight))
    assert list(scaled.shares.values()) == pytest.approx(list(row.shares.values()), rel=1e-12)
    assert (scaled.strength, scaled.smoothing) == pytest.approx((3 * row.strength, row.smoothing), rel=1e-12)


def test_the_strength_is_the_amplitude_on_a_wave_of_one_radian_a_pixel():
    """Of one stencil: |c d^(k+l) exp(i (x + y))| = |c|, up to the discretisation of a long enough wave."""
    c = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    c[..., 0, 1] = 0.7
    x = 0.01 * torch.arange(8, dtype=torch.float64)  # h = 0.01 instead of a shorter wave
    wave = torch.exp(1j * (x[:, None] + x[None, :]))
    kernel = kernels(c, 0.01)
    found = sum(kernel[0, 0, p, q] * wave[p : p + 6, q : q + 6] for p in range(3) for q in range(3))
    amplitude = read(convolution(kernels(c))).strength
    torch.testing.assert_close(found.abs(), torch.full((6, 6), amplitude).double(), rtol=1e-4, atol=0)


def test_a_kernel_of_zeros_has_no_parts_and_gives_no_nan():
    row = read(convolution(torch.zeros(3, 2, 3, 3)))
    assert set(row.shares.values()) == {0.0}
    assert row.strength == 0
    assert row.smoothing is None


def test_independent_entries_give_the_shares_that_the_module_states():
    row = read(convolution(random_weight(300, 300)))
    assert row.shares == pytest.approx(INDEPENDENT, abs=5e-3)
    assert row.smoothing == pytest.approx(INDEPENDENT_SMOOTHING, abs=5e-3)
    text = [f"{100 * INDEPENDENT[part]:.0f}" for part in PARTS]
    assert text == ["30", "40", "10", "21"]


def test_smoothing_is_the_time_of_the_heat_equation():
    mean = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    assert read(convolution(mean)).smoothing == pytest.approx(1 / 3)
    sharpened = -mean
    sharpened[..., 1, 1] += 2
    assert read(convolution(sharpened)).smoothing == pytest.approx(-1 / 3)
    assert read(convolution(-sharpened)).smoothing == pytest.approx(-1 / 3)  # whatever the sign of c


def test_a_dilated_kernel_is_read_in_pixels():
    weight = random_weight(2, 2)
    c = kernels(torch.eye(3, dtype=torch.float64).expand(1, 1, 3, 3))
    plain, wide = (read(convolution(w, dilation=d)) for w, d in ((c, 1), (c, 2)))
    assert plain.strength == pytest.approx(math.sqrt(3))
    assert wide.strength == pytest.approx(math.sqrt(1 + 4**2 + 16**2))
    assert read(convolution(weight, dilation=2)).reaction < read(convolution(weight)).reaction


# ---------------------------------------------------------------- what is read


def test_every_3x3_kernel_of_a_resnet_is_a_row_with_its_stage():
    rows = pde(resode.create("he_resnet8"))
    assert [(row.name, row.stage) for row in rows] == [
        ("conv1", None), ("layer1.0.conv1", 1), ("layer1.0.conv2", 1), ("layer2.0.conv1", 2),
        ("layer2.0.conv2", 2), ("layer3.0.conv1", 3), ("layer3.0.conv2", 3),
    ]  # fmt: skip
    assert all(row.term == "W" and row.time is None for row in rows)


def test_control_nodes_have_times_and_so_have_the_steps_of_a_scheme():
    time = resode.TimeGrid((0.0, 0.5, 2.0))
    rows = pde(resode.DynamicNet([resode.Stage(4, "preactivation", "imex", time)], classes=10))
    assert [(row.name, row.stage, row.time) for row in rows] == [
        ("stem.conv", None, None),
        ("stages.0.scheme.B.0", 1, 0.0),
        ("stages.0.scheme.B.1", 1, 0.5),
        ("stages.0.controls.0.conv1", 1, 0.0),
        ("stages.0.controls.0.conv2", 1, 0.0),
        ("stages.0.controls.1.conv1", 1, 0.5),
        ("stages.0.controls.1.conv2", 1, 0.5),
    ]


def test_halves_of_a_partitioned_scheme_are_rows_too():
    rows = pde(resode.DynamicNet([resode.Stage(8, "hamiltonian", "symplectic_euler", 2)], classes=10))
    nodes = [row for row in rows if row.time is not None]
    assert len(nodes) == 4
    assert {row.time for row in nodes} == {0.0, 1.0}


def test_of_the_antisymmetric_field_the_kernel_that_acts_is_read():
    layer = Antisymmetric(gamma=0.3).build(5)
    (row,) = pde(layer)
    assert row.name == "conv"
    expected = read(convolution(layer.kernel().detach()))
    assert row.shares == pytest.approx(expected.shares)
    assert row.strength == pytest.approx(expected.strength)
    depthwise = Antisymmetric(groups=5).build(5)
    with torch.no_grad():
        depthwise.conv.weight.normal_()
    (row,) = pde(depthwise)  # each channel by itself: K - K^T is odd
    assert row.reaction == row.diffusion == 0


def test_a_twist_has_a_row_for_each_kernel():
    layer = TwistConv2d(3, 4, 3, tie="free", degree=2)
    with torch.no_grad():
        layer.twist.normal_()
    rows = pde(nn.Sequential(layer))
    assert [row.term for row in rows] == ["W", "X", "Y", "X^2", "X Y", "Y^2"]
    expected = [read(convolution(w.detach())) for w in (layer.weight, *layer.kernels())]
    assert [row.strength for row in rows] == pytest.approx([row.strength for row in expected])


def test_other_sizes_are_left_out_and_a_shared_layer_is_one():
    shared = Convolution(3, 3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 5), Convolution(3, 3, 1), shared, shared)
    assert [row.name for row in pde(model)] == ["3"]


def test_a_kernel_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="0: the kernel has NaN or infinite entries"):
        pde(nn.Sequential(convolution(torch.full((1, 1, 3, 3), torch.nan))))


@pytest.mark.parametrize("name", fields.names())
@pytest.mark.parametrize("twist", [None, "conformal"])
def test_every_field_is_read(name, twist):
    options = {} if name == "bottleneck" else {"norm": None}
    net = resode.DynamicNet(
        [resode.Stage(4, fields.build(name, twist=twist, **options), "euler", resode.TimeGrid.uniform(2))]
    )
    rows = analysis.pde(net)
    assert {row.term for row in rows} >= ({"W"} if twist is None else {"W", "X", "Y"})
    assert len(analysis.vector_fields(net)) == (0 if twist is None else sum(r.term == "X" for r in rows))
    assert analysis.terms(net, (3, 8, 8))


# ---------------------------------------------------------------- what turns with the image


def tensor_kernel(smoothing, anisotropy, axis, drift=0.0, direction=0.0):
    """The kernel of u + div(T grad u) + v . grad u, with the axes of T and v given in degrees."""
    c = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    twice, angle = math.radians(2 * axis), math.radians(direction)
    c[..., 0, 0] = 1
    c[..., 0, 2] = smoothing + anisotropy * math.cos(twice)
    c[..., 2, 0] = smoothing - anisotropy * math.cos(twice)
    c[..., 1, 1] = 2 * anisotropy * math.sin(twice)
    c[..., 0, 1], c[..., 1, 0] = drift * math.cos(angle), drift * math.sin(angle)
    return kernels(c)


@pytest.mark.parametrize("axis", [0, 10, 45, 80, -30, -89])
@pytest.mark.parametrize("smoothing", [0.3, 0.0, -0.3])
def test_a_diffusion_tensor_is_read_with_its_sign_and_axes_whatever_way_the_image_is_turned(axis, smoothing):
    row = read(convolution(tensor_kernel(smoothing, 0.2, axis, drift=0.5, direction=2 * axis)))
    assert (row.smoothing, row.anisotropy, row.drift) == pytest.approx((smoothing, 0.2, 0.5), abs=1e-12)
    assert (row.axis, row.direction) == pytest.approx((axis, 2 * axis), abs=1e-9)
    assert row.isotropic == pytest.approx(smoothing**2 / (smoothing**2 + 0.2**2), abs=1e-12)


def test_turning_kernels_by_90_degrees_turns_axis_and_direction_and_nothing_else():
    weight = random_weight(5, 4)
    row, turned = (read(convolution(w)) for w in (weight, weight.mT.flip(-1)))  # (x, y) -> (-y, x)
    unchanged = ("smoothing", "anisotropy", "drift", "isotropic", "strength", "diffusion", "advection")
    for name in unchanged:
        assert getattr(turned, name) == pytest.approx(getattr(row, name), rel=1e-12)
    assert (turned.axis - row.axis) % 180 == pytest.approx(90, abs=1e-9)
    assert (turned.direction - row.direction) % 360 == pytest.approx(90, abs=1e-9)


def test_what_a_kernel_lacks_has_no_direction():
    laplacian = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    laplacian[..., 0, 2] = laplacian[..., 2, 0] = 1
    row = read(convolution(kernels(laplacian)))
    assert row.isotropic == pytest.approx(1)
    assert (row.smoothing, row.anisotropy, row.axis, row.drift, row.direction) == (None,) * 5
    identity = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    identity[..., 1, 1] = 1
    row = read(convolution(identity))
    assert (row.smoothing, row.anisotropy, row.drift) == (0, 0, 0)
    assert (row.axis, row.direction, row.isotropic) == (None, None, None)


def test_independent_entries_have_half_of_their_second_derivatives_in_the_laplacian():
    assert read(convolution(random_weight(300, 300))).isotropic == pytest.approx(1 / 2, abs=5e-3)
