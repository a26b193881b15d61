"""He et al.'s networks: published counts, names that are public, and options."""

import pytest
import torch

from resode.errors import InputError
from resode.models.he import he_preact_resnet, he_resnet

PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
STRIDE_LAST = {20: 304_378, 32: 498_810, 44: 693_242, 56: 887_674}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_are_the_published_ones(depth):
    with torch.device("meta"):
        assert parameters(he_resnet(depth)) == PARAMETERS[depth]


@pytest.mark.parametrize("depth", STRIDE_LAST)
def test_parameters_with_the_stride_in_the_last_unit(depth):
    with torch.device("meta"):
        assert parameters(he_resnet(depth, stride="last")) == STRIDE_LAST[depth]


@pytest.mark.parametrize("factory", [he_resnet, he_preact_resnet])
def test_the_depth_counts_the_layers_with_weights(factory):
    layers = (torch.nn.Conv2d, torch.nn.Linear)
    for depth in (8, 14, 50):
        with torch.device("meta"):
            assert sum(isinstance(module, layers) for module in factory(depth).modules()) == depth


UNIT = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"]
PREACTIVATION_UNIT = ["bn1.weight", "bn1.bias", "conv1.weight", "bn2.weight", "bn2.bias", "conv2.weight"]
HEAD = ["fc.weight", "fc.bias"]


def within_stages(names, n):
    return [f"layer{stage}.{unit}.{name}" for stage in (1, 2, 3) for unit in range(n) for name in names]


def test_parameter_names_are_public():
    names = [name for name, _ in he_resnet(14).named_parameters()]
    assert names == ["conv1.weight", "bn1.weight", "bn1.bias", *within_stages(UNIT, 2), *HEAD]


def test_parameter_names_of_the_preactivation_network_are_public():
    names = [name for name, _ in he_preact_resnet(14).named_parameters()]
    assert names == ["conv1.weight", *within_stages(PREACTIVATION_UNIT, 2), "bn.weight", "bn.bias", *HEAD]


@pytest.mark.parametrize(("stride", "where"), [("first", "layer{}.0"), ("last", "layer{}.1")])
@pytest.mark.parametrize("factory", [he_resnet, he_preact_resnet])
def test_shortcut_b_stands_where_the_shape_changes(factory, stride, where):
    names = {name for name, _ in factory(14, stride=stride, shortcut="B").named_parameters()}
    stages = (2, 3) if stride == "first" else (1, 2)
    expected = {
        f"{where.format(stage)}.downsample.{name}"
        for stage in stages
        for name in ("0.weight", "1.weight", "1.bias")
    }
    assert {name for name in names if "downsample" in name} == expected


@pytest.mark.parametrize("factory", [he_resnet, he_preact_resnet])
@pytest.mark.parametrize("stride", ["first", "last"])
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 28), (33, 47)])
def test_any_classes_channels_widths_and_sizes(factory, stride, size):
    network = factory(8, classes=7, in_channels=2, stride=stride, widths=[4, 6, 9]).eval()
    assert network(torch.randn(2, 2, *size)).shape == (2, 7)
    assert network.fc.in_features == 9


def test_stage_by_stage_the_image_halves_and_the_channels_double():
    for stride, shapes in (
        ("first", [(16, 32), (32, 16), (64, 8)]),
        ("last", [(32, 16), (64, 8), (64, 8)]),
    ):
        network, y = he_resnet(14, stride=stride).eval(), torch.randn(1, 16, 32, 32)
        for stage, (channels, size) in zip(
            (network.layer1, network.layer2, network.layer3), shapes, strict=True
        ):
            y = stage(y)
            assert y.shape == (1, channels, size, size)


def test_a_preactivation_network_of_zero_branches_is_stem_shortcuts_and_head():
    network = he_preact_resnet(14, widths=(4, 4, 4), zero_init=True).eval()
    x = torch.randn(3, 3, 8, 8)
    y = network.conv1(x)[:, :, ::4, ::4]
    expected = network.fc(torch.relu(network.bn(y)).mean((2, 3)))
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("factory", [he_resnet, he_preact_resnet])
def test_initial_weights_by_fan_in_differ_in_the_linear_layer_and_where_channels_change(factory):
    """Variances 2 / (9 inputs), 2 / (9 outputs) and 1 / (3 inputs); 5 standard deviations of an estimate."""
    torch.manual_seed(0)
    for initial, stem, linear in (("fan_in", 2 / 27, 2 / 256), ("fan_out", 2 / (9 * 64), 1 / (3 * 256))):
        network = factory(8, widths=(64, 128, 256), initial=initial)
        assert network.conv1.weight.var().item() == pytest.approx(stem, rel=5 * (2 / 1728) ** 0.5)
        assert network.fc.weight.var().item() == pytest.approx(linear, rel=5 * (2 / 2560) ** 0.5)


@pytest.mark.parametrize("factory", [he_resnet, he_preact_resnet])
def test_construction_is_reproducible(factory):
    torch.manual_seed(3)
    first = factory(14, shortcut="B").state_dict()
    torch.manual_seed(3)
    second = factory(14, shortcut="B").state_dict()
    other = factory(14, shortcut="B").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("factory", [he_resnet, he_preact_resnet])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 21}, "the nearest are 20 and 26"),
        ({"depth": 2}, "the smallest is 8"),
        ({"depth": 8, "shortcut": "C"}, "shortcut 'C'"),
        ({"depth": 8, "stride": "middle"}, "stride 'middle'"),
        ({"depth": 8, "initial": "fan"}, "unknown initial weights 'fan'"),
        ({"depth": 8, "widths": (16, 32)}, "3 positive integers"),
        ({"depth": 8, "widths": 16}, "3 positive integers"),
        ({"depth": 8, "widths": (16, 32, 0)}, "3 positive integers"),
        ({"depth": 8, "widths": (32, 16, 64)}, "use shortcut B"),
        ({"depth": 8, "classes": 0}, "classes 0"),
        ({"depth": 8, "classes": "ten"}, "classes 'ten'"),
        ({"depth": 8, "in_channels": -1}, "in_channels -1"),
    ],
)
def test_invalid_options_are_refused_in_one_line(factory, options, message):
    with pytest.raises(InputError, match=message):
        factory(**options)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        he_resnet(8, shortcut="C", stride="middle", widths=(), classes=0)
    assert len(caught.value.messages) == 4
