"""ResNet-18 ... 152: published counts and public names."""

import pytest
import torch

from resode.errors import InputError
from resode.models.resnet import cifar_resnet

PARAMETERS = {18: 11_173_962, 34: 21_282_122, 50: 23_520_842, 101: 42_512_970, 152: 58_156_618}
SMALL = (4, 6, 8, 10)


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_are_the_published_ones(depth):
    with torch.device("meta"):
        assert sum(p.numel() for p in cifar_resnet(depth).parameters()) == PARAMETERS[depth]


@pytest.mark.parametrize("depth", PARAMETERS)
def test_the_depth_counts_the_layers_with_weights_beside_the_shortcuts(depth):
    layers = (torch.nn.Conv2d, torch.nn.Linear)
    with torch.device("meta"):
        named = cifar_resnet(depth).named_modules()
        assert sum(isinstance(m, layers) for name, m in named if "downsample" not in name) == depth


def test_parameter_names_are_public():
    names = [name for name, _ in cifar_resnet(50, widths=SMALL).named_parameters()]
    assert names[:18] == [
        "conv1.weight", "bn1.weight", "bn1.bias",
        "layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias",
        "layer1.0.conv2.weight", "layer1.0.bn2.weight", "layer1.0.bn2.bias",
        "layer1.0.conv3.weight", "layer1.0.bn3.weight", "layer1.0.bn3.bias",
        "layer1.0.downsample.0.weight", "layer1.0.downsample.1.weight", "layer1.0.downsample.1.bias",
        "layer1.1.conv1.weight", "layer1.1.bn1.weight", "layer1.1.bn1.bias",
    ]  # fmt: skip
    assert names[-2:] == ["fc.weight", "fc.bias"]
    narrow = [name for name, _ in cifar_resnet(18, widths=SMALL).named_parameters()]
    assert [name for name in narrow if "downsample.0" in name] == [
        f"layer{stage}.0.downsample.0.weight" for stage in (2, 3, 4)
    ]


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("size", [(4, 4), (32, 32), (35, 17)])
def test_any_classes_channels_widths_and_sizes(depth, size):
    network = cifar_resnet(depth, classes=3, in_channels=1, widths=SMALL).eval()
    assert network(torch.randn(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize(("depth", "channels"), [(18, 512), (50, 2048)])
def test_the_last_stage_sees_4x4_of_a_32x32_image(depth, channels):
    with torch.device("meta"):
        network = cifar_resnet(depth).eval()
        y = network.conv1(torch.empty(1, 3, 32, 32))
        assert y.shape == (1, 64, 32, 32)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            y = stage(y)
        assert y.shape == (1, channels, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "choose one of 18, 34, 50, 101, 152"),
        ({"depth": 18, "widths": (64, 128)}, "4 positive integers"),
        ({"depth": 18, "classes": 0}, "classes 0"),
    ],
)
def test_invalid_options_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message):
        cifar_resnet(**options)
