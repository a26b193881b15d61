"""Theorem 4: a pre-activation ResNet is Euler's method; and the published networks with their counts."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from resode.errors import InputError
from resode.models import create
from resode.models.he import he_preact_resnet
from resode.models.published import preactivation_net, revnet

# ------------------------------------------------------------ ResNet-v2 is Euler with h = 1

UNIT = {"bn1": "norm1", "conv1": "conv1", "bn2": "norm2", "conv2": "conv2"}


def renamed(name):
    """The name of a tensor of `he_preact_resnet` in the network of dynamic blocks."""
    for old, new in (("conv1.", "stem.conv."), ("bn.", "head.norm."), ("fc.", "head.linear.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    stage, unit, layer, tensor = re.fullmatch(r"layer(\d)\.(\d+)\.(\w+)\.(\w+)", name).groups()
    number, step = int(stage) - 1, int(unit) - (stage != "1")
    if step < 0:
        return f"connectors.{number - 1}.{layer}.{tensor}"
    owner = "statistics" if tensor.startswith(("running", "num_batches")) else "controls"
    return f"stages.{number}.{owner}.{step}.{UNIT[layer]}.{tensor}"


def pair(depth, dtype=torch.float32, gradient="stored"):
    """Both networks with the same generic tensors."""
    torch.manual_seed(0)
    classic = he_preact_resnet(depth, widths=(4, 6, 8)).to(dtype)
    for p in classic.parameters():
        p.data += 0.1 * torch.randn_like(p)
    euler = preactivation_net(depth, integrator="euler", widths=(4, 6, 8), gradient=gradient).to(dtype)
    tensors = {renamed(name): t.clone() for name, t in classic.state_dict().items()}
    assert set(tensors) == set(euler.state_dict())
    euler.load_state_dict(tensors)
    return classic, euler


def same(classic, euler, of):
    by_name = dict(getattr(euler, of)())
    for name, tensor in getattr(classic, of)():
        other = by_name[renamed(name)]
        assert torch.equal(tensor, other), name
        if of == "named_parameters":
            assert torch.equal(tensor.grad, other.grad), name


@pytest.mark.parametrize("depth", [14, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", ["stored", "checkpointed"])
def test_a_preactivation_resnet_is_eulers_method_bit_for_bit(depth, dtype, gradient):
    """Values, gradients and running statistics, in training and then in evaluation mode."""
    classic, euler = pair(depth, dtype, gradient)
    for training in (True, False):
        classic.train(training).zero_grad()
        euler.train(training).zero_grad()
        x = torch.randn(4, 3, 16, 16, dtype=dtype)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        logits = [net(x) for net, x in zip((classic, euler), inputs, strict=True)]
        assert torch.equal(*logits)
        for y in logits:
            y.square().sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad)
        same(classic, euler, "named_parameters")
        same(classic, euler, "named_buffers")


def test_the_steps_are_of_length_1_and_each_has_its_own_node():
    _, euler = pair(20)
    for block, steps in zip(euler.blocks(), (3, 2, 2), strict=True):
        assert block.stage.states.intervals == (1.0,) * steps
        assert len(block.controls) == len(block.evaluations) == steps


def test_another_step_is_another_network():
    """The negative control: steps of another length give other logits."""
    classic, euler = pair(14)
    stages = [replace(b.stage, states={"steps": b.stage.states.steps, "end": 0.9}) for b in euler.blocks()]
    shorter = euler.with_stages(stages)
    shorter.load_state_dict(euler.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(classic.eval()(x), euler.eval()(x))
    assert not torch.allclose(classic(x), shorter.eval()(x))


# ------------------------------------------------------------ counts

COUNTS = {
    "dynamicblocks": {"dynamicblocks": ({}, 251_866)},
    "CIFAR-10": {
        kind: ({"kind": kind}, count)
        for kind, count in (("parabolic", 502_570), ("hamiltonian", 264_106), ("second_order", 502_570))
    },
    "CIFAR-100": {
        kind: ({"kind": kind, "widths": (32, 64, 128), "last": 256, "classes": 100}, count)
        for kind, count in (("parabolic", 652_484), ("hamiltonian", 362_180), ("second_order", 652_484))
    },
    "STL-10": {
        kind: ({"kind": kind, "widths": (16, 32, 64, 128), "last": 128}, count)
        for kind, count in (("parabolic", 618_554), ("hamiltonian", 324_794), ("second_order", 618_554))
    },
    "revnet38": {"revnet38": ({}, 573_994)},
}


@pytest.mark.parametrize(("data", "kind"), [(data, kind) for data, kinds in COUNTS.items() for kind in kinds])
def test_parameters_are_the_published_ones(data, kind):
    options, count = COUNTS[data][kind]
    with torch.device("meta"):
        net = create(data if data in ("dynamicblocks", "revnet38") else "ruthotto_haber", **options)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(
    ("name", "depth"),
    [("lm_resnet20", 20), ("lm_resnet56", 56), ("momentum_resnet20", 20), ("momentum_resnet44", 44)],
)
def test_a_scheme_adds_its_learned_coefficients_to_a_resnet_and_nothing_else(name, depth):
    options = {"shortcut": "A"} if name.startswith("lm") else {}
    with torch.device("meta"):
        net, classic = create(name, **options), he_preact_resnet(depth)
    learned = sum(p.numel() for block in net.blocks() for p in block.scheme.parameters())
    ours, theirs = (sum(p.numel() for p in module.parameters()) for module in (net, classic))
    assert ours - learned == theirs
    n = (depth - 2) // 6
    assert learned == (3 * (n - 1) if name.startswith("lm") else 0)


@pytest.mark.parametrize("transition", ["continued", "restarted"])
@pytest.mark.parametrize("depth", [14, 20])
def test_every_parameter_of_an_lm_resnet_is_trained(transition, depth):
    net = create(f"lm_resnet{depth}", transition=transition, widths=(4, 6, 8)).double()
    net(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("gradient", ["stored", {"name": "checkpointed", "every": 1}])
def test_a_continued_transition_is_the_recurrence_over_the_unit(gradient):
    """y_{-1} = S y: with k = 1 throughout, y_{n+1} = y_{n-1} + f(y_n)."""
    net = create("lm_resnet20", widths=(4, 6, 8), gradient=gradient).double().eval()
    with torch.no_grad():
        for block in net.blocks():
            block.scheme["k"].fill_(1.0)
    y = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    unit, block = net.connectors[0], net.stages[1]
    before = unit.downsample(y)
    state = unit(y)
    for e in range(2):
        before, state = state, before + block._field(e, block.controls.at(float(e)), state, record=False)
    found = block(*unit.state_and_difference(y))
    torch.testing.assert_close(found, state, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transition": "restart"}, "unknown transition 'restart'; did you mean 'restarted'"),
        ({"k": "chanel"}, "did you mean 'channel'"),
        ({"shortcut": "C"}, "unknown shortcut 'C': use A, B, preactivated"),
    ],
)
def test_other_options_of_an_lm_resnet_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        create("lm_resnet20", **options)


def test_a_moving_start_needs_a_unit_before_it():
    moving = {
        "width": 4,
        "field": "preactivation",
        "integrator": {"name": "learned_two_step", "first": "moving"},
    }
    with pytest.raises(InputError, match=r"stage 1: .* there is none before the first stage"):
        create("dynamic", stages=[{**moving, "states": 2}])
    still = {"width": 4, "field": "preactivation", "integrator": "euler", "states": 2}
    with pytest.raises(InputError, match=r"stage 2: .* take connector=unit before it"):
        create("dynamic", stages=[still, {**moving, "states": 2}])


def test_lm_resnet_with_k_0_is_the_resnet():
    """The learned two-step scheme contains Euler's."""
    classic, _ = pair(20, torch.float64)
    net = create("lm_resnet20", shortcut="A", widths=(4, 6, 8)).double()
    tensors = {renamed(name): t for name, t in classic.state_dict().items()}
    tensors |= {
        name: torch.zeros_like(t) for name, t in net.state_dict().items() if name.endswith("scheme.k")
    }
    net.load_state_dict(tensors)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net.eval()(x), classic.eval()(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        net.stages[0].scheme.k.fill_(-0.5)
    assert not torch.allclose(net(x), classic(x))


def test_the_first_unit_of_a_revnet_has_no_first_norm():
    with torch.device("meta"):
        net = create("revnet38")
    first = {name for name, _ in net.stages[0].controls[0].named_parameters()}
    assert {name.split(".")[1] for name in first} == {"conv1", "norm2", "conv2"}
    assert [len(list(block.evaluations)) for block in net.blocks()] == [2, 4, 4, 4]


# ------------------------------------------------------------ blocks of several steps with the same weights


def by_hand(net, blocks, steps, x):
    """The loop written out: each block's weights, `steps` times with h = 1 / steps; stage 1 is twisted."""
    y, place = net.stem(x), 0
    for number, count in enumerate(blocks):
        for j in range(count):
            if number and j == 0:
                y = net.connectors[place - 1].widening(y)
            conv = net.stages[place].controls[0].conv
            for _ in range(steps):
                f = F.conv2d(y, conv.weight, padding=1, groups=conv.groups)
                if number == 0:
                    side = y.shape[2]
                    X = torch.arange(side, dtype=f.dtype) / side - 0.5
                    Wx = torch.einsum("oin,nhw->oihw", conv.twist, conv.basis[:, 0])
                    Wy = Wx.transpose(2, 3).flip(2)
                    f = f + X * F.conv2d(y, Wx, padding=1, groups=conv.groups)
                    f = f + X[:, None] * F.conv2d(y, Wy, padding=1, groups=conv.groups)
                y = y + f / steps
            norm = net.connectors[place].norm if place < len(net.connectors) else net.head.norm
            y = F.relu(norm(y))
            place += 1
    return net.head.linear(y.mean((2, 3)))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("border", [0, 1])
def test_a_pde_resnet_is_the_loop_of_its_sub_steps(steps, border):
    torch.manual_seed(0)
    blocks, options = (2, 2), {"groups": 2, "steps": steps, "where": (1,), "border": border}
    net = create("pde_resnet", widths=(4, 8), blocks=blocks, **options).double().eval()
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if "num_batches" not in name and "basis" not in name:
                tensor.add_(0.3 * torch.rand_like(tensor))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_hand(net, blocks, steps, x), rtol=1e-12, atol=1e-12)
    assert net.connectors[1](x.new_zeros(1, 4, 8, 8)).shape[2:] == (4 + border, 4 + border)


def test_the_weights_of_a_pde_block_count_once():
    def counted(**options):
        with torch.device("meta"):
            net = create("pde_resnet", widths=(8, 16), blocks=(2, 3), groups=2, where=(1, 2), **options)
        return sum(p.numel() for p in net.stages.parameters())

    for steps in (1, 2, 3):
        assert counted(steps=steps) == (9 + 4) * (2 * 8 * 8 + 3 * 16 * 16) // 2
        assert counted(steps=steps, tie="none") == 9 * (2 * 8 * 8 + 3 * 16 * 16) // 2


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dynamicblocks", {"layer": "parabolik"}, "unknown layer 'parabolik'; did you mean 'parabolic'"),
        ("dynamicblocks", {"layer": ["double"]}, "unknown layer"),
        ("dynamicblocks", {"widths": (16,)}, "a list of 2 positive integers"),
        ("dynamicblocks", {"widths": 16}, "widths 16: a list of 2 positive integers"),
        ("dynamicblocks", {"scheme": "rk1"}, "unknown integrator 'rk1'"),
        ("dynamicblocks", {"norm": "tvv"}, "unknown norm 'tvv'; did you mean 'tv'"),
        ("dynamicblocks", {"states": [0, 2, 1]}, "a time grid has to increase"),
        ("dynamicblocks", {"scheme": "euler", "controls": [0, 1, 2, 3, 4]}, "touches the control nodes 4"),
        ("dynamicblocks", {"classes": "ten"}, "classes 'ten'"),
        ("ruthotto_haber", {"kind": "hamiltonean"}, "unknown kind 'hamiltonean'; did you mean 'hamiltonian'"),
        ("ruthotto_haber", {"kind": ["parabolic"]}, "unknown kind"),
        ("ruthotto_haber", {"kind": "hamiltonian", "widths": (3, 4)}, "a multiple of 2"),
        ("ruthotto_haber", {"widths": []}, "widths \\[\\]: a list of 1 positive integers"),
        ("ruthotto_haber", {"widths": 32}, "widths 32: a list"),
        ("ruthotto_haber", {"widths": (32, "64")}, "positive integers"),
        ("ruthotto_haber", {"steps": 0}, "0 steps: a positive integer"),
        ("ruthotto_haber", {"end": "1"}, "number is needed"),
        ("ruthotto_haber", {"gradient": "reversible"}, "Euler has no inverse"),
        ("chang", {"kind": "middpoint"}, "did you mean 'midpoint'"),
        ("chang", {"h": None}, "h None; a positive number"),
        ("chang", {"h": 0}, "has to increase"),
        ("chang", {"widths": "32"}, "positive integers"),
        ("imex_net", {"gradient": "reversible"}, "IMEX has no inverse"),
        ("imex_net", {"widths": None}, "positive integers"),
        ("neural_ode", {"rtol": 0}, "rtol 0; a positive number"),
        ("neural_ode", {"method": "dopri55"}, "did you mean 'dopri5'"),
        ("neural_ode", {"norm": "batch"}, "no running statistics"),
        ("neural_ode", {"widths": (32, 64)}, "a list of 3 positive integers"),
        ("pde_resnet", {"blocks": (1, 2)}, r"blocks \(1, 2\): a list of 4 positive integers"),
        ("pde_resnet", {"steps": 0}, "steps 0: a positive integer"),
        ("pde_resnet", {"groups": 3}, "3 groups do not divide 32 channels"),
        ("pde_resnet", {"tie": "konformal"}, "unknown tie 'konformal'; did you mean 'conformal'"),
        ("pde_resnet", {"where": (1, 5)}, "where 5: a stage from 1 to 4 is needed"),
        ("pde_resnet", {"border": -1}, "border -1; a number of pixels"),
        ("lm_resnet8", {}, "the smallest depth is 14"),
        ("lm_resnet21", {}, "the nearest are 20 and 26"),
        ("lm_resnet20", {"gradient": "reversible"}, "has no inverse"),
        ("lm_resnet20", {"widths": (8, 4, 2), "shortcut": "A"}, "use shortcut B"),
        ("revnet38", {"widths": (4, 8)}, "a list of 3 positive integers"),
        ("revnet38", {"widths": (3, 4, 6)}, "the width 3 has to be a multiple of 2"),
        ("revnet39", {}, "did you mean 'revnet38'"),
    ],
)
def test_invalid_options_are_refused_in_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        create(name, **options)
    assert all("\n" not in message for message in caught.value.messages)


def test_revnets_have_two_depths():
    with pytest.raises(InputError, match="no RevNet of depth 56: choose 38 or 110"):
        revnet(56)
