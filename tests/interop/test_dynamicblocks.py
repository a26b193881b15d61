"""Theorem 11: networks of the DynamicBlocks toolbox are imported with their logits and gradients.

Compared with a plain form of them, for any grids and widths; `tests/fidelity` has the toolbox's own numbers.
"""

from bisect import bisect_right
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resode.errors import InputError
from resode.interop import from_dynamicblocks

PARABOLIC = {
    "weight": "conv.weight",
    "conv.bias": "conv.bias",
    "convt.bias": "bias",
    "normLayer.bias": "norm.bias",
}
DOUBLE = {
    f"{old}{n}.{tensor}": f"{new}{n}.{tensor}"
    for n in (1, 2)
    for old, new, tensor in (
        ("conv", "conv", "weight"),
        ("conv", "conv", "bias"),
        ("normLayer", "norm", "bias"),
    )
}


def ours(name, layer="parabolic"):
    """Our name of a control parameter of the toolbox."""
    _, block, _, node, rest = name.split(".", 4)
    return f"stages.{block}.controls.{node}.{(PARABOLIC if layer == 'parabolic' else DOUBLE)[rest]}"


# ------------------------------------------------------------ written again, plainly


class Layer(nn.Module):
    """A control layer under the toolbox's names, its tensors in use in `used`."""

    def __init__(self, layer, width, norm):
        super().__init__()
        if layer == "parabolic":
            self.weight = nn.Parameter(torch.randn(width, width, 3, 3) * (2 / (9 * width)) ** 0.5)
            self.conv, self.convt = nn.Module(), nn.Module()
            for holder in (self.conv, self.convt):
                holder.weight = self.weight
                holder.bias = nn.Parameter(torch.randn(width) / 10)
            self.used = ["weight", "conv.bias", "convt.bias"]
            norms = ["normLayer"]
        else:
            self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
            self.used = [f"conv{n}.{tensor}" for n in (1, 2) for tensor in ("weight", "bias")]
            norms = ["normLayer1", "normLayer2"]
        for name in norms if norm == "tv" else ():
            holder = nn.Module()
            holder.weight = nn.Parameter(torch.ones(width), requires_grad=False)
            holder.bias = nn.Parameter(torch.randn(width) / 10)
            self.add_module(name, holder)
            self.used.append(f"{name}.bias")

    def tensors(self):
        return {name: self.get_parameter(name) for name in self.used}


class Reference(nn.Module):
    """The toolbox's network, one operation after another."""

    def __init__(self, scheme, layer, states, controls, widths, in_channels, classes, norm="tv"):
        super().__init__()
        self.scheme, self.layer, self.states, self.grid = scheme, layer, states, controls
        self.open = self.joint(in_channels, widths[0], 3)
        self.dynamicBlocks = nn.ModuleList()
        for width in widths[:-1]:
            block = nn.Module()
            block.controlLayers = nn.ModuleList(Layer(layer, width, norm) for _ in controls)
            self.dynamicBlocks.append(block)
        self.connectors = nn.ModuleList(self.joint(a, b, 1) for a, b in pairwise(widths))
        self.linear = nn.Linear(widths[-1], classes)

    @staticmethod
    def joint(inputs, outputs, kernel):
        made = nn.Module()
        made.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        made.normLayer = nn.BatchNorm2d(outputs, eps=1e-4)
        made.normLayer.running_mean.normal_()
        made.normLayer.running_var.uniform_(0.5, 2)
        return made

    def theta(self, block, t):
        nodes, layers = self.grid, block.controlLayers
        if t <= nodes[0] or t >= nodes[-1]:
            return layers[0 if t <= nodes[0] else -1].tensors()
        j = bisect_right(nodes, t) - 1
        w = (t - nodes[j]) / (nodes[j + 1] - nodes[j])
        left, right = layers[j].tensors(), layers[j + 1].tensors()
        return {name: (1 - w) * left[name] + w * right[name] for name in left}

    def norm(self, y, theta, name):
        if f"{name}.bias" not in theta:
            return y
        return y / torch.sqrt((y**2).sum(1, keepdim=True) + 1e-4) + theta[f"{name}.bias"][:, None, None]

    def f(self, block, t, y):
        p = self.theta(block, t)
        if self.layer == "parabolic":
            z = F.relu(self.norm(F.conv2d(y, p["weight"], p["conv.bias"], padding=1), p, "normLayer"))
            return -F.conv_transpose2d(z, p["weight"], p["convt.bias"], padding=1)
        for n in (1, 2):
            y = F.conv2d(y, p[f"conv{n}.weight"], p[f"conv{n}.bias"], padding=1)
            y = F.relu(self.norm(y, p, f"normLayer{n}"))
        return y

    def integrated(self, block, y):
        for t, end in zip(self.states[:-1], self.states[1:], strict=True):
            h = end - t
            k1 = self.f(block, t, y)
            if self.scheme == "rk1":
                y = y + h * k1
                continue
            k2 = self.f(block, t + h / 2, y + h / 2 * k1)
            k3 = self.f(block, t + h / 2, y + h / 2 * k2)
            k4 = self.f(block, end, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    def forward(self, x):
        y = F.relu(self.open.normLayer(self.open.conv(x)))
        for number, (block, connector) in enumerate(zip(self.dynamicBlocks, self.connectors, strict=True)):
            y = F.relu(connector.normLayer(connector.conv(self.integrated(block, y))))
            if number < len(self.connectors) - 1:
                y = F.avg_pool2d(y, 2)
        return self.linear(y.mean((2, 3)))


TINY = {
    "scheme": "rk4", "layer": "parabolic", "states": [0, 0.5], "controls": [0, 0.5],
    "widths": (3, 4), "in_channels": 3, "classes": 10,
}  # fmt: skip


def reference(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return Reference(**options).to(dtype).eval()


def imported(net, **options):
    return from_dynamicblocks(net.state_dict(), **options)


def compare(dtype, size=10, tolerance=1e-10, training=False, **options):
    plain = reference(dtype, **options).train(training)
    net = imported(plain, **options).train(training)
    channels = options["in_channels"]
    x = torch.randn(4, channels, size, size + 1, dtype=dtype, generator=torch.Generator().manual_seed(2))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    logits = [plain(inputs[0]), net(inputs[1])]
    assert logits[1].dtype == dtype
    torch.testing.assert_close(logits[1], logits[0], rtol=tolerance, atol=tolerance)
    for y in logits:
        y.square().sum().backward()
    scale = max(1.0, inputs[0].grad.abs().max().item())
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=tolerance, atol=tolerance * scale)
    found = dict(net.named_parameters())
    for name, p in plain.named_parameters():
        if ".controlLayers." not in name or not p.requires_grad:
            continue
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        scale = max(1.0, expected.abs().max().item())
        g = found[ours(name, options["layer"])].grad
        torch.testing.assert_close(g, expected, rtol=tolerance, atol=tolerance * scale, msg=name)
    for theirs, mine in (
        (plain.open.normLayer, net.stem.norm),
        (plain.connectors[-1].normLayer, net.connectors[-1].norm),
    ):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scheme", ["rk1", "rk4"])
@pytest.mark.parametrize("layer", ["parabolic", "double"])
@pytest.mark.parametrize("norm", ["tv", "none"])
@pytest.mark.parametrize("training", [False, True])
def test_the_plain_form_has_the_same_logits_and_gradients(scheme, layer, norm, training):
    """Controls coarser than the states, an odd size, grey images, 7 classes."""
    compare(
        torch.float64,
        training=training,
        scheme=scheme,
        layer=layer,
        norm=norm,
        states=[0, 0.1, 0.25, 0.5, 0.7],
        controls=[0, 0.3, 0.7],
        widths=(3, 5, 4, 6),
        in_channels=1,
        classes=7,
    )


@pytest.mark.parametrize("layer", ["parabolic", "double"])
def test_single_precision_is_kept(layer):
    compare(torch.float32, tolerance=2e-4, **{**TINY, "layer": layer})


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["rk1", "rk4"]),
    st.sampled_from(["parabolic", "double"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.integers(8, 13),
)
def test_any_grids_and_widths_are_imported(scheme, layer, steps, between, widths, size):
    """Control nodes within and beyond the states, used or not."""
    states, controls = ([sum(each[:k]) / 10 for k in range(len(each) + 1)] for each in (steps, between))
    options = {
        "scheme": scheme,
        "layer": layer,
        "states": states,
        "controls": controls,
        "widths": tuple(widths),
    }
    compare(torch.float64, size, 1e-9, in_channels=2, classes=3, **options)


def test_a_node_that_the_scheme_never_touches_is_kept_with_gradient_zero():
    options = {**TINY, "scheme": "rk1", "states": [0, 0.5, 1], "controls": [0, 0.5, 1]}
    net = imported(reference(**options), **options)
    assert [block.unused for block in net.blocks()] == [(2,)]
    net(torch.randn(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.stages[0].controls[2].parameters())
    assert "unused, with zero gradient: 1" in str(net)


def test_importing_keeps_the_random_state_and_the_tensors():
    plain = reference(**TINY)
    before, state = torch.get_rng_state(), {name: t.clone() for name, t in plain.state_dict().items()}
    net = imported(plain, **TINY)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    assert all(torch.equal(t, state[name]) for name, t in plain.state_dict().items())


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "rk2"}, "unknown scheme 'rk2'; did you mean 'rk[14]'"),
        ({"layer": "parabolik"}, "unknown layer 'parabolik'; did you mean 'parabolic'"),
        ({"norm": "bacth"}, "unknown norm 'bacth'; did you mean 'batch'"),
        ({"norm": "batch"}, "lacks the running statistics of its state layers.*add them before saving"),
        ({"states": [0, 0]}, "a time grid has to increase"),
        ({"controls": [1, 0]}, "a time grid has to increase"),
        ({"widths": (3,)}, "a list of 2 positive integers"),
        ({"widths": 3}, "a list of 2 positive integers"),
        ({"widths": (3, 5)}, "connectors.0.conv.weight is 4x3x1x1, not 5x3x1x1"),
        ({"classes": 7}, "head.linear.weight is 10x4, not 7x4"),
        ({"in_channels": 1}, "stem.conv.weight is 3x3x3x3, not 3x1x3x3"),
        ({"controls": [0, 0.2, 0.5]}, "stages.0.controls.2.* is missing"),
        ({"controls": [0]}, "controls.1.* is unknown"),
        ({"norm": "none"}, "norm.bias is unknown"),
        ({"layer": "double"}, "no such DynamicBlocks network"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        imported(reference(**TINY), **{**TINY, **change})
    assert all("\n" not in message for message in caught.value.messages)


def test_unknown_names_are_reported_together():
    with pytest.raises(InputError) as caught:
        imported(reference(**TINY), **{**TINY, "scheme": "rk2", "layer": "triple", "norm": "group"})
    assert len(caught.value.messages) == 3


LAYER = "dynamicBlocks.0.controlLayers.1"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("open.conv.bias"), "stem.conv.bias is missing"),
        (lambda s: s.pop(f"{LAYER}.weight"), "stages.0.controls.1.conv.weight is missing"),
        (lambda s: s.update({"extra": torch.zeros(1)}), "extra"),
        (lambda s: s.update({f"{LAYER}.convt.bias": torch.zeros(5)}), "is 5, not 3"),
        (
            lambda s: s.update({f"{LAYER}.normLayer.weight": torch.full((3,), 2.0)}),
            "is not 1, where the toolbox freezes it",
        ),
        (
            lambda s: s.update({f"{LAYER}.convt.weight": s[f"{LAYER}.convt.weight"] + 1}),
            "convt.weight differs from the kernel of its layer",
        ),
    ],
    ids=["no bias", "no kernel", "more", "shape", "scale", "other kernel"],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(spoil, message):
    state = dict(reference(**TINY).state_dict())
    spoil(state)
    with pytest.raises(InputError, match=message) as caught:
        from_dynamicblocks(state, **TINY)
    assert all("\n" not in message for message in caught.value.messages)


# ------------------------------------------------------------ state layers


def with_state_layers(net, steps, evaluations=None):
    """The state_dict with state layers, which nobody reads: one a step, or a list of them."""
    state = dict(net.state_dict())
    node = {n.removeprefix(f"{LAYER}."): t for n, t in state.items() if n.startswith(f"{LAYER}.")}
    for k in range(steps):
        for part in [""] if evaluations is None else [f"{i}." for i in range(evaluations)]:
            prefix = f"dynamicBlocks.0.stateLayers.{k}.{part}"
            state |= {prefix + name: torch.full_like(t, 7.0) for name, t in node.items()}
    return state


def test_state_layers_are_interpolated_anew_and_not_read():
    options = {**TINY, "scheme": "rk1", "states": [0, 0.25, 0.5]}
    plain = reference(**options)
    net = from_dynamicblocks(with_state_layers(plain, 2), **options)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "layers", "message"),
    [
        ({"scheme": "rk4"}, (1,), "are those of rk1, not of rk4"),
        ({"scheme": "rk1"}, (1, 4), "are those of rk4, not of rk1"),
        ({"scheme": "rk1"}, (3,), r"are those of 3 steps; \[0, 0.5\] has 1"),
    ],
)
def test_state_layers_tell_the_scheme_and_the_number_of_steps(options, layers, message):
    options = {**TINY, **options}
    with pytest.raises(InputError, match=message):
        from_dynamicblocks(with_state_layers(reference(**TINY), *layers), **options)
