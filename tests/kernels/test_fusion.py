"""The backend replaces patterns of operations by our operators and leaves everything else as it is."""

import copy
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resode
from resode import atomic
from resode.kernels import batch_norm, convolution, library
from resode.kernels.fusion import fused, replace

pytestmark = pytest.mark.skipif(not batch_norm.available(), reason="no C++ compiler with OpenMP")


def replaced(graph, without=()):
    """Replace in a graph; returns the number of operations that became operators."""
    return sum(replace(graph, without).values())


def captured(module, x, without=()):
    """The number of replaced operations, the operators of the graph, and the result of running it."""
    found = {}

    def backend(graph, inputs):
        found["replaced"] = replaced(graph, without)
        found["targets"] = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        found["fused"] = [
            (node.args[1] is not None, node.args[5])
            for node in graph.graph.nodes
            if node.target is torch.ops.resode.batch_norm.default
        ]
        return graph.forward

    torch._dynamo.reset()
    found["y"] = torch.compile(module, backend=backend, dynamic=False, fullgraph=True)(x)
    return found


def image(channels=3, size=8, images=4):
    x = torch.randn(images, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last)


def same(module, x, **tolerance):
    """Check that values, gradients and statistics of a network are the same after replacement."""
    plain = copy.deepcopy(module)
    found = captured(module, x)
    y = plain(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (found["y"] * g).sum().backward()
    (y * g).sum().backward()
    torch.testing.assert_close(found["y"], y, **tolerance)
    for (name, mine), expected in zip(module.named_parameters(), plain.parameters(), strict=True):
        scale = expected.grad.abs().max() + 1e-6
        torch.testing.assert_close(mine.grad / scale, expected.grad / scale, msg=name, **tolerance)
    for (name, mine), expected in zip(module.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, expected, msg=name, **tolerance)
        assert not mine.requires_grad
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("setting", [None, False])
def test_inductor_skips_its_probes_where_our_kernels_run(setting):
    """In the compilation of forward and backward only; a setting of the user is respected."""
    from torch._inductor import config
    from torch._inductor.custom_graph_pass import CustomGraphPass

    seen = []

    class Seeing(CustomGraphPass):
        def __call__(self, graph):
            seen.append(config.cpp.vec_isa_ok)

        def uuid(self):
            return None

    torch._dynamo.reset()
    network = torch.compile(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh()), backend=fused, dynamic=False)
    patch = {"cpp.vec_isa_ok": setting, "fx_graph_cache": False, "post_grad_custom_pre_pass": Seeing()}
    with config.patch(patch):
        network(image()).sum().backward()
        assert config.cpp.vec_isa_ok is setting
    assert seen == [True if setting is None and convolution.available() else setting] * 2


def test_a_residual_network_becomes_operators_alone():
    torch.manual_seed(0)
    network = resode.create("he_resnet8", widths=[16, 16, 32]).train()
    found = same(network, image(size=16), rtol=1e-3, atol=1e-4)
    assert found["replaced"] == 7  # norms
    assert F.batch_norm not in found["targets"]
    assert F.relu not in found["targets"]
    assert found["fused"].count((True, True)) == 3
    assert found["fused"].count((False, True)) == 4


@pytest.mark.parametrize(("without", "norms"), [((), 7), ({"batch_norm"}, 0)])
def test_each_replacement_can_be_skipped(without, norms):
    torch.manual_seed(0)
    network = resode.create("he_resnet8", widths=[16, 16, 32]).train()
    found = captured(network, image(size=16), without)
    assert found["targets"].count(torch.ops.resode.batch_norm.default) == norms
    assert found["replaced"] == norms


def changed_between(n, y):
    total = n + y
    y.add_(1)
    return total


class Net(nn.Module):
    """A normalisation, and a function of it and of its input."""

    def __init__(self, then, channels=16, **options):
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, **options)
        self.then = then

    def forward(self, x):
        y = self.convolution(x)
        return self.then(self.norm(y), y)


@pytest.mark.parametrize(
    ("then", "other_and_relu"),
    [
        (lambda n, y: n, (False, False)),
        (lambda n, y: torch.relu(n), (False, True)),
        (lambda n, y: F.relu(n, inplace=True), (False, True)),
        (lambda n, y: n.relu_(), (False, True)),
        (lambda n, y: F.relu(n + y), (True, True)),
        (lambda n, y: F.relu(y + n), (True, True)),
        (lambda n, y: n + y, (True, False)),
        (lambda n, y: F.relu(n) + n, (False, False)),  # n is used twice
        (lambda n, y: n + n, (False, False)),
        (lambda n, y: n + y.mean((2, 3), keepdim=True), (False, False)),  # another shape
        (lambda n, y: n + y.double(), (False, False)),
        (lambda n, y: n + 1, (False, False)),
        (lambda n, y: torch.add(n, y, alpha=2), (False, False)),
        (lambda n, y: torch.tanh(n + y), (True, False)),
        (lambda n, y: (n + y).mul_(2), (True, False)),
        (lambda n, y: n.add_(y).add_(y), (False, False)),
        (lambda n, y: operator.iadd(operator.iadd(n, y), 2 * y), (True, False)),
        (lambda n, y: operator.iadd(y.clone(), n), (False, False)),  # the other tensor changes
        (lambda n, y: F.relu(changed_between(n, y.clone())), (True, False)),
    ],
)
def test_an_addition_and_a_relu_are_fused_where_possible(then, other_and_relu):
    torch.manual_seed(0)
    found = same(Net(then).train(), image(), rtol=1e-4, atol=1e-5)
    assert found["fused"] == [other_and_relu]


def test_statistics_that_two_calls_share_are_updated_in_order():
    class Twice(Net):
        def forward(self, x):
            y = self.convolution(x)
            return F.relu(self.norm(y) + self.norm(3 * y + 1))

    same(Twice(None).train(), image(), rtol=1e-3, atol=1e-4)


def test_frozen_parameters_get_no_gradient():
    class Frozen(Net):
        def forward(self, x):
            y = self.convolution(x)
            with torch.no_grad():
                n = self.norm(y)
            return F.relu(n + y)

    module = Frozen(None).train()
    captured(module, image())["y"].sum().backward()
    assert module.norm.weight.grad is None
    assert module.convolution.weight.grad is not None


def test_a_tensor_of_the_caller_is_still_changed_in_place():
    module, x, total = Net(lambda n, y: n).train(), image(), torch.zeros(4, 16, 8, 8)

    class Adding(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, x, total):
            total += self.net(x)
            return total

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(Adding(), backend=lambda graph, _: (replace(graph), graph.forward)[1], dynamic=False)(
            x, total
        )
    assert total.abs().max() > 0


def test_dynamic_shapes_are_not_replaced():
    module = Net(lambda n, y: F.relu(n)).train()
    found = []

    def backend(graph, inputs):
        found.append(replaced(graph))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend, dynamic=True)
    for images in (4, 6):
        assert len(compiled(image(images=images))) == images
    assert set(found) == {0}


@pytest.mark.parametrize(
    "network",
    [
        Net(lambda n, y: n).eval(),
        Net(lambda n, y: n, channels=12).train(),
        Net(lambda n, y: n, affine=False).train(),
    ],
    ids=["evaluation", "channels", "no parameters"],
)
def test_unsupported_norms_are_not_replaced(network):
    found = same(network, image()) if network.training else captured(network, image())
    assert found["replaced"] == 0


def test_norms_without_running_statistics_are_replaced():
    found = same(
        Net(lambda n, y: F.relu(n), track_running_stats=False).train(), image(), rtol=1e-4, atol=1e-5
    )
    assert found["replaced"] == 1


def test_without_a_compiler_nothing_is_replaced(monkeypatch):
    monkeypatch.setattr(batch_norm, "library", lambda: None)
    assert captured(Net(lambda n, y: F.relu(n)).train(), image())["replaced"] == 0


def test_a_missing_or_failing_compiler_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("RESODE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    library.library.cache_clear()
    assert library.library() is None
    monkeypatch.setenv("CXX", "false")
    library.library.cache_clear()
    with pytest.warns(UserWarning, match="the C\\+\\+ kernels cannot be built"):
        assert library.library() is None
    monkeypatch.delenv("CXX")
    library.library.cache_clear()
    assert library.library() is not None
    assert [path.suffix for path in atomic.private_folder("kernels").iterdir()] == [".so"]


@pytest.mark.skipif(not convolution.available(), reason="no bf16 instructions")
def test_convolutions_are_replaced_under_bf16_only():
    network = resode.create("he_resnet8", widths=[16, 16, 32]).train()
    for half, expected in ((True, 7), (False, 0)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = captured(network, image(size=16))
        assert found["targets"].count(torch.ops.resode.convolution.default) == expected
        assert found["replaced"] == 7 + expected


@pytest.mark.skipif(not convolution.available(), reason="no bf16 instructions")
@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"stride": 3},
        {"stride": (1, 2)},
        {"padding": 0},
        {"padding": "same"},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
    ],
    ids=str,
)
def test_unsupported_convolutions_are_not_replaced(options):
    module = nn.Conv2d(16, 32, 3, **{"padding": 1, "bias": False, **options})
    plain = nn.Conv2d(16, 32, 3, padding=1, bias=False)
    x = image(channels=16).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert captured(module, x)["replaced"] == 0
        assert captured(plain, x)["replaced"] == 1
        assert captured(nn.Conv2d(16, 32, 3, 2, 1, bias=False), x)["replaced"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_inductor_compiles_the_rest():
    torch.manual_seed(0)
    network = resode.create("he_resnet8", widths=[16, 16, 32]).train()
    plain, x = copy.deepcopy(network), image(size=16)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=fused, dynamic=False)
    labels = torch.arange(4)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss, expected = (F.cross_entropy(each(x).float(), labels) for each in (compiled, plain))
        loss.backward()
        expected.backward()
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    mine, other = (torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (network, plain))
    assert F.cosine_similarity(mine, other, 0) > 0.99
