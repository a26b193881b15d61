"""Theorem 11: blocks of the published ResNets with a twist are imported with their outputs."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from resode.errors import InputError
from resode.interop import from_twist_block
from resode.operators.twist import TwistConv2d

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("twist-*.safetensors"))


def opened(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        options = {name: json.loads(value) for name, value in file.metadata().items()}
    state = {name.removeprefix("state."): t for name, t in tensors.items() if name.startswith("state.")}
    return state, tensors["input"], tensors["output"], options


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_outputs(path):
    state, x, output, options = opened(path)
    module = from_twist_block(state, **options)
    assert next(module.parameters()).dtype == torch.float64
    torch.testing.assert_close(module(x), output, rtol=0, atol=1e-10)
    for form in ("stacked", "fused"):
        for layer in module.modules():
            if isinstance(layer, TwistConv2d):
                layer.form = form
        torch.testing.assert_close(module(x), output, rtol=0, atol=1e-10)


def test_there_are_two_golden_files():
    assert [path.stem for path in GOLDEN] == ["twist-basicblock", "twist-bottleneck"]


# ------------------------------------------------------------ the published forward pass, written again


def twisted(state, name, u, stride, project):
    wx, wy = project(state[f"{name}x.weight"], state[f"{name}y.weight"])
    padded = {"padding": 1, "stride": stride}
    y = F.conv2d(u, state[f"{name}.weight"], **padded)
    height, width = y.shape[2:]
    rows = torch.arange(height, dtype=u.dtype)[:, None] / height - 0.5
    columns = torch.arange(width, dtype=u.dtype) / width - 0.5
    return y + columns * F.conv2d(u, wx, **padded) + rows * F.conv2d(u, wy, **padded)


def saddle(wx, wy):
    wx = (wx - wx.flip(2, 3)) / 2
    return wx, wx.transpose(2, 3).flip(2)


def conformal(wx, wy):
    wx = (wx - wx.flip(2, 3)) / 2
    return wx, wx.transpose(2, 3).flip(3)


def odd(wx, wy):
    return (wx - wx.flip(2, 3)) / 2, (wy - wy.flip(2, 3)) / 2


def mixed(wx, wy):
    wx = (wx - wx.flip(2)) / 2
    wx = (wx - wx.flip(3)) / 2
    return wx, wx.transpose(2, 3).flip(3)


def norm(state, name, y):
    mean, variance, weight, bias = (
        state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(y, mean, variance, weight, bias)


def shortcut(state, x, stride):
    if "shortcut.0.weight" not in state:
        return x
    return norm(state, "shortcut.1", F.conv2d(x, state["shortcut.0.weight"], stride=stride))


def basic(state, x, stride, tie):
    u = F.relu(norm(state, "bn1", x))
    v = twisted(state, "conv1", u, stride, tie)
    return twisted(state, "conv2", F.relu(norm(state, "bn2", v)), 1, tie) + shortcut(state, u, stride)


def bottleneck(state, x, stride, tie):
    y = F.relu(norm(state, "bn1", F.conv2d(x, state["conv1.weight"])))
    y = F.relu(norm(state, "bn2", twisted(state, "conv2", y, stride, tie)))
    y = norm(state, "bn3", F.conv2d(y, state["conv3.weight"]))
    return F.relu(y + shortcut(state, x, stride))


def of_norm(name, channels):
    module = nn.BatchNorm2d(channels).double()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def a_state(block, stride, inputs, channels):
    torch.manual_seed(stride + inputs)
    kernel = {"x": 3, "y": 3, "": 3}
    outputs = channels if block == "basic" else 4 * channels
    state = {}
    for name, before in (
        (("conv1", inputs), ("conv2", channels)) if block == "basic" else (("conv2", channels),)
    ):
        for suffix, k in kernel.items():
            state[f"{name}{suffix}.weight"] = torch.randn(channels, before, k, k, dtype=torch.float64) / 8
    if block == "bottleneck":
        state["conv1.weight"] = torch.randn(channels, inputs, 1, 1, dtype=torch.float64)
        state["conv3.weight"] = torch.randn(outputs, channels, 1, 1, dtype=torch.float64)
        state |= of_norm("bn3", outputs)
    state |= of_norm("bn1", inputs if block == "basic" else channels) | of_norm("bn2", channels)
    if stride > 1 or inputs != outputs:
        state["shortcut.0.weight"] = torch.randn(outputs, inputs, 1, 1, dtype=torch.float64)
        state |= of_norm("shortcut.1", outputs)
    return state


@pytest.mark.parametrize(
    ("block", "tie", "project"),
    [
        ("basic", None, saddle),
        ("basic", "conformal", conformal),
        ("bottleneck", None, mixed),
        ("bottleneck", "odd", odd),
    ],
    ids=["basic", "basic before", "bottleneck", "bottleneck before"],
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "channels"), [(4, 4), (16, 4), (3, 8)])
def test_other_commits_strides_and_widths(block, tie, project, stride, inputs, channels):
    state = a_state(block, stride, inputs, channels)
    sizes = {"stride": stride, "in_channels": inputs, "channels": channels}
    module = from_twist_block(state, block=block, tie=tie, **sizes)
    for size in ((9, 9), (8, 12)):
        x = torch.randn(2, inputs, *size, dtype=torch.float64)
        published = {"basic": basic, "bottleneck": bottleneck}[block](state, x, stride, project)
        torch.testing.assert_close(module(x), published, rtol=0, atol=1e-10)


def test_single_precision_is_kept():
    state, _, _, options = opened(GOLDEN[0])
    single = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    assert next(from_twist_block(single, **options).parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "basik"}, "unknown block 'basik'; did you mean 'basic'"),
        ({"channels": 7}, "no such block with a twist: conv1x.weight has the shape"),
        ({"block": "bottleneck"}, "no such block with a twist"),
        ({"stride": 2}, "downsample"),
        ({"tie": "mixed"}, "tie 'mixed': use saddle or conformal"),
    ],
)
def test_other_blocks_are_refused_in_one_line(change, message):
    state, _, _, options = opened(GOLDEN[0])
    with pytest.raises(InputError, match=message) as caught:
        from_twist_block(state, **{**options, **change})
    assert "\n" not in str(caught.value)
