"""Inference programs give the logits of the network for any batch; each step rounds once to bfloat16."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resode.inference import Frozen
from resode.kernels import convolution, inference
from resode.kernels.inference import Unsupported, program, translate
from resode.models import create, twist

pytestmark = pytest.mark.skipif(
    not convolution.available(), reason="no bf16 instructions, or no C++ compiler"
)

# Both shortcuts, every kind of unit, channels that do not fill a tile, odd image sizes, one channel.
NETWORKS = {
    "shortcut A": ({"name": "he_resnet8"}, (3, 32, 32)),
    "shortcut B": ({"name": "he_resnet8", "shortcut": "B"}, (3, 13, 10)),
    "narrow": ({"name": "he_resnet14", "widths": (4, 12, 20)}, (3, 9, 20)),
    "48 channels": ({"name": "he_resnet8", "widths": (16, 48, 48)}, (3, 16, 50)),
    "strides last": ({"name": "he_resnet14", "stride": "last"}, (3, 32, 32)),
    "pre-activation": ({"name": "he_preact_resnet14"}, (3, 17, 17)),
    "bottleneck": ({"name": "cifar_resnet50", "widths": (8, 8, 16, 16)}, (3, 16, 16)),
    "two steps": ({"name": "lm_resnet14"}, (3, 16, 16)),
    "momentum": ({"name": "momentum_resnet14"}, (3, 16, 16)),
    "grey": ({"name": "digits_resnet8"}, (1, 8, 8)),
}


def trained(network, image):
    """The network with norms unlike those of initialisation."""
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.5
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.3, 0.3)
        for _ in range(3):
            network.train()(torch.randn(8, *image) + 0.2)
    return network.eval()


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", NETWORKS)
def test_logits_agree_with_the_network_to_bf16(case):
    model, image = NETWORKS[case]
    network = trained(create(**model), image)
    x = torch.randn(5, *image)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            torchs = network(x).float()
    program_ = translate(network, x)
    assert relative_error(program_(x), expected) < max(1.5 * relative_error(torchs, expected), 4e-3)


class Integers(nn.Module):
    """Every operation of a program on small integers, which bfloat16 represents exactly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(2, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.same = nn.Conv2d(32, 32, 3, padding=1)
        self.side = nn.Conv2d(16, 48, 1, stride=2)
        self.out = nn.Conv2d(32, 48, 1)
        self.head = nn.Linear(48, 7)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_((torch.rand(weight.shape) < 0.05) * torch.randn(weight.shape).sign())

    def forward(self, x):
        y = F.relu(self.stem(x))
        z = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 5, 11))
        z = F.relu(z - self.down(y))
        z = z + self.same(z) * 2
        u = self.out(z).relu_()
        u += self.side(y)
        return self.head(F.adaptive_avg_pool2d(u, 1).flatten(1))


@pytest.mark.parametrize("size", [(16, 16), (7, 33), (1, 2), (40, 8)])
def test_integers_are_exact(size):
    network = Integers().eval()
    x = torch.randint(-2, 3, (6, 2, *size)).float()
    with torch.no_grad():
        expected = network(x)
    assert expected.abs().max() > 0
    torch.testing.assert_close(translate(network, x)(x), expected, rtol=1e-6, atol=1e-6)


def test_logits_do_not_depend_on_the_batch_or_the_threads():
    network = trained(create("he_resnet8"), (3, 32, 32))
    x = torch.randn(7, 3, 32, 32)
    program_, threads = translate(network, x), torch.get_num_threads()
    logits = program_(x)
    alone = torch.cat([program_(each[None]) for each in x])
    torch.testing.assert_close(alone, logits, rtol=1e-5, atol=1e-6)  # the last layer is torch's
    assert torch.equal(program_(x.to(memory_format=torch.channels_last)), logits)
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(program_(x), logits)
    finally:
        torch.set_num_threads(threads)
    assert program_(x[:0]).shape == (0, 10)


def test_nan_stays_in_its_image():
    network = trained(create("he_resnet8"), (3, 16, 16))
    program_ = translate(network, torch.randn(1, 3, 16, 16))
    for row, column in ((0, 0), (3, 3), (15, 15)):  # corners meet the neighbours in memory
        x = torch.randn(5, 3, 16, 16)
        expected = program_(x)
        x[1, :, row, column] = float("nan")
        found = program_(x)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])


class Small(nn.Module):
    """A convolution, another layer, an average and a linear layer."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.head = nn.Conv2d(3, 16, 3, padding=1), layer, nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer(self.first(x)).mean((2, 3)))


class Function(nn.Module):
    """A function (module, x) -> y as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.function(self, x)


def shared(_, x):
    y = x + 1 * x
    z = y * 2
    y.relu_()
    return y + z


def through_dropout(_, x):
    y = 2 * x
    d = F.dropout(y, 0.5, training=False)
    d.relu_()
    return d + y


UNSUPPORTED = {
    "tanh": nn.Tanh(),
    "groups": nn.Conv2d(16, 16, 3, padding=1, groups=2),
    "dilation": nn.Conv2d(16, 16, 3, padding=2, dilation=2),
    "5x5": nn.Conv2d(16, 16, 5, padding=2),
    "no padding": nn.Conv2d(16, 16, 3),
    "periodic": nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
    "norm of the batch": nn.BatchNorm2d(16, track_running_stats=False),
    "changed in place": Function(shared),
    "changed through dropout": Function(through_dropout),
    "random": Function(lambda _, x: x * torch.rand(())),
    "counts": Function(lambda self, x: x * self.count.add_(1)),
    "1x1 with padding": nn.Conv2d(16, 16, 1, padding=1),
    "stride 3": nn.Conv2d(16, 16, 3, padding=1, stride=3),
    "pooling": nn.MaxPool2d(2),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_other_operations_are_unsupported(case):
    network, x = Small(UNSUPPORTED[case]).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(Unsupported):
        translate(network, x)
    assert program(network, x) is None


def after_a_sum(self, x):
    y = F.relu(x)
    return F.batch_norm(x + y, torch.full((16,), 0.1), torch.full((16,), 2.0))


SUPPORTED = {
    "in place, and dropout": nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)),
    "of itself": Function(lambda _, x: torch.add(x, x, alpha=3)),
    "less itself": Function(lambda _, x: torch.sub(x, x, alpha=0.5)),
    "less another": Function(lambda _, x: torch.sub(F.relu(x), x, alpha=0.5)),
    "norm of a sum": Function(after_a_sum),
    "an unused result": Function(lambda _, x: (torch.tanh(x), x)[1]),
    "of a constant": Function(lambda self, x: F.conv2d(x, (torch.eye(16) @ torch.eye(16))[:, :, None, None])),
}


@pytest.mark.parametrize("case", SUPPORTED)
def test_supported_operations_are_translated(case):
    network, x = Small(SUPPORTED[case]).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        program_ = translate(network, x)
        assert relative_error(program_(x), expected) < 1e-2
    assert torch.equal(copy.deepcopy(program_)(x), program_(x))


def test_later_changes_of_weights_have_no_effect():
    network, x = trained(create("he_resnet8"), (3, 16, 16)), torch.randn(2, 3, 16, 16)
    program_ = translate(network, x)
    expected = program_(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(program_(x), expected)


class Reshaped(nn.Module):
    """A linear layer of a reshaped mean."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.first(x).mean((2, 3)).reshape(-1, 2, 8))


def test_networks_that_do_not_end_in_logits_are_unsupported():
    x = torch.randn(2, 3, 8, 8)
    for network in (
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
        Reshaped(),
    ):
        with pytest.raises(Unsupported):
            translate(network, x)
    for network in (twist(create("he_resnet8")), create("he_resnet8").double()):
        with pytest.raises(Unsupported):
            translate(network.eval(), x)


def test_heavy_networks_and_large_images_have_no_program(monkeypatch):
    network, x = create("he_resnet8").eval(), torch.randn(1, 3, 32, 32)
    assert program(network, x) is not None
    assert program(network, torch.randn(1, 3, 160, 160)) is None
    monkeypatch.setitem(inference.MOST_WEIGHTS, convolution.bf16_instructions(), 70_000)
    assert program(network, x) is None


def test_a_frozen_network_is_a_program_under_bf16_only(monkeypatch):
    network = trained(create("he_resnet8"), (3, 16, 16))
    frozen, x = Frozen(copy.deepcopy(network)), torch.randn(5, 3, 16, 16)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda x: compiled.append(len(x)) or module(x))
    with torch.inference_mode():
        expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(frozen(x), expected) < 1e-2
    assert not compiled
    assert torch.equal(frozen(x), expected)
    assert compiled == [5]
    unsupported = Frozen(Small(nn.Tanh()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(unsupported(x[:3]), unsupported.module(x[:3]))
    assert compiled == [5, 3]
    other = torch.randn(2, 3, 8, 8)  # another image size, so another program
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert relative_error(frozen(other), network(other).float()) < 2e-2
    assert compiled == [5, 3]
