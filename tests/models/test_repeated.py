"""Gradient methods and memory budgets in networks of others: the same gradients, in fewer bytes."""

import copy
import pickle
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import resode
from resode import memory
from resode.errors import InputError
from resode.gradients import Checkpointed, Stored
from resode.models.budget import chain_owners, set_gradients
from resode.models.repeated import find_units
from resode.training.setup.execution import compiled
from tests import ranks

TWO_LEVELS = {"name": "checkpointed", "levels": 2}
METHODS = ["checkpointed", {"name": "checkpointed", "every": 1}, TWO_LEVELS]
SHAPE = (3, 16, 16)


class Block(nn.Module):
    """The basic block of torchvision, with dropout."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.dropout(self.relu(self.bn1(self.conv1(x))))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Plain(nn.Module):
    """A ResNet as torchvision and timm write it: `layer1`, `layer2` are `nn.Sequential`."""

    def __init__(self, units: int = 4, widths: tuple[int, int] = (8, 16), dropout: float = 0.0) -> None:
        super().__init__()
        first, second = widths
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first)
        self.layer1 = nn.Sequential(*(Block(first, first, 1, dropout) for _ in range(units)))
        rest = (Block(second, second, 1, dropout) for _ in range(units - 1))
        self.layer2 = nn.Sequential(Block(first, second, 2, dropout), *rest)
        self.fc = nn.Linear(second, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))


class Stage(nn.Module):
    """A stage as transformers write it: a loop over the units."""

    def __init__(self, *units: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*units)

    def forward(self, state: Tensor) -> Tensor:
        for layer in self.layers:
            state = layer(state)
        return state


@dataclass
class Output:
    logits: Tensor


class Nested(nn.Module):
    """Stages in an `nn.ModuleList`, and a dataclass as output, as in transformers."""

    def __init__(self, units: int = 4) -> None:
        super().__init__()
        self.embedder = nn.Conv2d(3, 8, 3, padding=1)
        first = Stage(*(Block(8, 8) for _ in range(units)))
        second = Stage(Block(8, 16, 2), *(Block(16, 16) for _ in range(units - 1)))
        self.stages, self.classifier = nn.ModuleList([first, second]), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Output:
        x = self.embedder(x)
        for stage in self.stages:
            x = stage(x)
        return Output(self.classifier(x.mean((2, 3))))


def pair(make=Plain, method="checkpointed", dtype=torch.float32, **options):
    """The same network twice, with stored gradients and with another method."""
    torch.manual_seed(0)
    plain = make(**options).to(dtype)
    network = copy.deepcopy(plain)
    resode.set_gradient(network, method)
    return plain, network


def images(count=4, dtype=torch.float32, shape=SHAPE):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def step(network, x, *, bf16=False):
    """Gradients and buffers after a training step."""
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = network(x)
        loss = F.cross_entropy(getattr(y, "logits", y), torch.arange(len(x)))
    loss.backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    return found | {name: buffer.clone() for name, buffer in network.named_buffers()}


def assert_same(found, expected, dtype=torch.float32):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


def recomputes(network, x):
    """How often convolutions run in a step, beyond once each."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    with mock.patch.object(F, "conv2d", wraps=F.conv2d) as convolution:
        step(network, x)
    return convolution.call_count - len(layers)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("make", [Plain, Nested])
def test_gradients_and_statistics_are_those_of_the_plain_network(make, method, dtype):
    plain, network = pair(make, method, dtype)
    for count in (4, 3):
        x = images(count, dtype)
        assert_same(step(network, x), step(plain, x), dtype)
    assert network.state_dict()["stages.0.layers.0.bn1.num_batches_tracked" if make is Nested else
                                "layer1.0.bn1.num_batches_tracked"] == 2  # fmt: skip


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_dropout_masks_and_autocast_are_those_of_the_forward_pass(method, bf16):
    plain, network = pair(method=method, dropout=0.3)
    x = images().to(memory_format=torch.channels_last)
    assert_same(step(network, x, bf16=bf16), step(plain, x, bf16=bf16))


def test_units_are_recomputed_and_names_stay():
    plain, network = pair()
    x = images()
    assert recomputes(plain, x) == 0
    assert recomputes(network, x) == 2 * 8 + 1
    assert list(network.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in network.named_modules()] == [name for name, _ in plain.named_modules()]
    assert repr(network) == repr(plain)
    assert isinstance(network.layer1[0], Block)
    resode.set_gradient(network, "stored")
    assert type(network.layer1[0]) is Block
    assert vars(network.layer1[0]).keys() == vars(plain.layer1[0]).keys()
    assert recomputes(network, x) == 0


def test_evaluation_without_gradients_is_unchanged():
    plain, network = pair()
    with torch.no_grad():
        assert torch.equal(network.eval()(images()), plain.eval()(images()))
    with torch.inference_mode():
        assert torch.equal(network(images()), plain(images()))


@pytest.mark.parametrize("of", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_recompute_their_own_units(of):
    plain, network = pair()
    x = images()
    step(network, x)
    step(plain, x)
    made = of(network)
    assert chain_owners(made)[0].units[0] is made.layer1[0]
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert_same(step(made, x), step(plain, x))
    assert recomputes(made, x) > 0


def test_a_backward_pass_is_repeated_and_differentiated():
    plain, network = pair(dtype=torch.float64, method=TWO_LEVELS)
    x, found = images(dtype=torch.float64), []
    for each in (plain, network):
        loss = each(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        parameters = list(each.parameters())
        first = torch.autograd.grad(each(x).square().sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
        found.append({str(n): g for n, g in enumerate([*(p.grad for p in parameters), *second])})
    assert_same(found[1], found[0], torch.float64)


def test_two_forward_passes_before_their_backward_pass():
    plain, network = pair(dropout=0.2, dtype=torch.float64)
    found = []
    for each in (plain, network):
        torch.manual_seed(3)
        (each(images(4, torch.float64)).square().sum() + each(images(3, torch.float64)).sum()).backward()
        found.append({name: p.grad for name, p in each.named_parameters()})
    assert_same(found[1], found[0], torch.float64)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_optimizer_may_step_during_the_backward_pass(method):
    plain, network = pair(method=method, dtype=torch.float64)
    for each in (plain, network):
        for p in each.parameters():
            p.register_post_accumulate_grad_hook(torch.no_grad()(lambda p: p.sub_(0.1 * p.grad)))
        step(each, images(dtype=torch.float64))
    assert_same(dict(network.named_parameters()), dict(plain.named_parameters()), torch.float64)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_networks_have_the_same_gradients(whole):
    plain, network = pair(units=2, widths=(4, 8))
    x = images()
    expected = step(plain, x)
    made = torch.compile(network, backend="aot_eager") if whole else compiled(network, "aot_eager")
    torch.manual_seed(2)
    F.cross_entropy(made(x), torch.arange(len(x))).backward()
    found = {name: p.grad for name, p in network.named_parameters()}
    assert_same(found, {name: expected[name] for name in found})


@pytest.mark.slow
def test_gradients_under_ddp_are_those_of_one_process():
    _, network = pair(dtype=torch.float64)
    x = images(dtype=torch.float64)
    alone, together = ranks.gradients(network.eval(), x), ranks.gradients(network, x, ranks=2)
    assert_same(together, alone, torch.float64)


def test_a_loop_that_is_no_chain_has_the_same_gradients():
    class Odd(nn.Module):
        """Units out of order, one twice, random numbers and changes in place between them."""

        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 4, 3), nn.ModuleList(Block(4, 4, 1, 0.2) for _ in range(6))

        def forward(self, x):
            a, b, c, d, e, f = self.blocks
            y = b(a(self.stem(x)))
            kept = c(F.dropout(y, 0.5))
            y = d(kept.clone().mul_(2))
            y = f(e(d(y)) + kept)
            return a(y).mean((2, 3))

    plain, network = pair(Odd, dtype=torch.float64)
    x = images(dtype=torch.float64)
    assert_same(step(network, x), step(plain, x), torch.float64)


def test_units_with_several_arguments_have_the_same_gradients():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x, shift, scale=1.0):
            return x + scale * torch.relu(self.conv(x + shift)), shift

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 4, 3), nn.ModuleList(Shifted() for _ in range(4))
            self.shift = nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, x):
            x, shift = self.stem(x), 2 * self.shift
            for block in self.blocks:
                x, shift = block(x, shift, scale=0.5)
            return x.mean((2, 3))

    plain, network = pair(Network, dtype=torch.float64)
    x = images(dtype=torch.float64)
    assert_same(step(network, x), step(plain, x), torch.float64)
    assert recomputes(network, x) == 4
    with pytest.raises(InputError, match=r"blocks\.0 is called with 3 arguments, not with one tensor"):
        resode.fit_memory(network, "100kB", SHAPE, 4)


def test_tied_weights_have_the_same_gradients():
    def tied():
        made = Plain()
        for block in made.layer1:
            block.conv1.weight = made.layer1[0].conv2.weight
        return made

    plain, network = pair(tied, dtype=torch.float64)
    x = images(dtype=torch.float64)
    assert_same(step(network, x), step(plain, x), torch.float64)
    fitted = resode.fit_memory(network, 10**9, SHAPE, 4)
    assert fitted.parameter_bytes == sum(p.nbytes for p in network.parameters())


# ---------------------------------------------------------------- hooks


def test_hooks_are_called_once():
    calls = {}

    def count(name):
        def hook(*_):
            calls[name] = calls.get(name, 0) + 1

        return hook

    plain, network = pair(dtype=torch.float64)
    x = images(dtype=torch.float64)
    stages = [network.layer1, network.layer1[1], network.layer1[2].conv1, network.layer2[0]]
    for number, module in enumerate(stages):
        module.register_forward_hook(count(f"forward {number}"))
        module.register_forward_pre_hook(count(f"before {number}"))
        module.register_full_backward_hook(count(f"backward {number}"))
    network.layer2[1].conv2.register_full_backward_hook(count("backward inside"))
    assert_same(step(network, x), step(plain, x), torch.float64)
    assert set(calls.values()) == {1}
    assert len(calls) == 3 * len(stages) + 1


def test_hooks_that_change_results_are_respected():
    plain, network = pair(dtype=torch.float64)
    for each in (plain, network):
        each.layer1[1].register_forward_hook(lambda module, args, result: 2 * result)
        each.layer1[2].conv1.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        each.layer2[1].conv1.weight.register_hook(lambda gradient: 3 * gradient)
    x = images(dtype=torch.float64)
    assert_same(step(network, x), step(plain, x), torch.float64)


def test_a_unit_with_hooks_inside_is_stored():
    network = Plain()
    network.layer1[1].conv1.register_forward_hook(lambda *_: None)
    described = resode.set_gradient(network, "checkpointed")
    assert [stage.steps for stage in described.stages] == [1, 2, 4]
    for block in (*network.layer1, *network.layer2):
        block.relu.register_forward_hook(lambda *_: None)
    assert recomputes(network, images()) == 0
    resode.set_gradient(network, "stored")
    with pytest.raises(InputError, match="no residual blocks to recompute"):
        resode.set_gradient(network, "checkpointed")


def test_hooks_inside_a_network_of_resode_are_refused_by_name():
    network = resode.create("he_resnet20", widths=(4, 4, 8))
    network.layer2[1].conv1.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"^layer2\.1\.conv1: has forward hooks, which recomputation would"):
        resode.set_gradient(network, "checkpointed")
    assert network.gradient == Stored()
    network = resode.create("revnet38")
    network.stages[1].controls[0].register_forward_pre_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"^stages\.1\.controls\.0"):
        resode.set_gradient(network, "reversible")


# ---------------------------------------------------------------- budgets


def measured(network, shape, batch, *, bf16=False):
    """The peak of a step beside the parameters, with the images."""
    with memory.measured(network.parameters()) as live:
        x = torch.randn(batch, *shape).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = network(x)
            loss = F.cross_entropy(getattr(y, "logits", y).float(), torch.zeros(batch, dtype=torch.long))
        del y
        loss.backward()
    return live.peak


def least(network, *args, **options):
    with pytest.raises(InputError, match=r"memory budget 0\.1 MB: no gradient method meets it.* give") as e:
        resode.fit_memory(network, 100_000, *args, **options)
    return float(str(e.value).split("give ")[1].split(" MB")[0])


@pytest.mark.parametrize(("make", "precision"), [(Plain, "fp32"), (Nested, "bf16")])
def test_the_measured_peak_is_within_a_tenth_of_the_promise(make, precision):
    torch.manual_seed(0)
    network, args = make(units=10).to(memory_format=torch.channels_last), (SHAPE, 16)
    first = least(network, *args, precision=precision)
    most = resode.fit_memory(network, 10**9, *args, precision=precision)
    assert most.gradient.recomputed == 0
    assert first < 0.6 * most.predicted_bytes / 1e6
    recomputed = []
    for share in (0, 0.4, 1.01):
        budget = round(first * 1e6 + share * (most.predicted_bytes - first * 1e6))
        fitted = resode.fit_memory(network, budget, *args, precision=precision)
        assert fitted.predicted_bytes <= budget
        found = measured(network, *args, bf16=precision == "bf16")
        assert found == pytest.approx(fitted.image_bytes + fitted.activation_bytes, rel=0.1)
        recomputed.append(fitted.gradient.recomputed)
    assert recomputed == sorted(recomputed, reverse=True)
    assert recomputed[0] > 0.5
    assert recomputed[-1] == 0
    with pytest.raises(InputError, match="no gradient method meets it"):
        resode.fit_memory(network, round((first - 0.2) * 1e6), *args, precision=precision)


def test_what_fits_has_the_same_gradients():
    plain, network = pair(Nested, "stored", units=8)
    fitted = resode.fit_memory(network, f"{least(network, SHAPE, 16)}MB", SHAPE, 16)
    assert fitted.gradient.recomputed > 0.5
    x = images()
    assert_same(step(network, x), step(plain, x))


@pytest.mark.parametrize("name", ["he_resnet20", "cifar_resnet50", "revnet38", "dynamicblocks"])
def test_networks_of_resode_fit_in_the_same_way(name):
    network = resode.create(name, **({"widths": (4, 8, 8, 16)} if name == "cifar_resnet50" else {}))
    fitted = resode.fit_memory(network, "1GB", SHAPE, 16, moments=2)
    assert fitted.optimizer_bytes == 2 * fitted.gradient_bytes
    assert fitted.budget == 10**9
    assert all(stage.method == Stored() for stage in fitted.gradient.stages)


def test_only_some_of_a_network_is_a_chain():
    class Half(Plain):
        def forward(self, x):
            x = self.layer1(F.relu(self.bn1(self.conv1(x))))
            for block in self.layer2:
                x = F.silu(block(x))
            return self.fc(x.mean((2, 3)))

    network = Half(units=6)
    with pytest.raises(InputError, match=r"not recomputed: something is computed between layer2\.0 and") as e:
        resode.fit_memory(network, "1MB", SHAPE, 16)
    smallest = str(e.value).split("give ")[1].split(",")[0]
    fitted = resode.fit_memory(network, smallest, SHAPE, 16)
    first, second = fitted.gradient.stages
    assert isinstance(first.method, Checkpointed)
    assert second.method == Stored()
    # outside chains the gradients that flow are not counted
    found = measured(network.to(memory_format=torch.channels_last), SHAPE, 16)
    assert found == pytest.approx(fitted.activation_bytes, rel=0.15)


# ---------------------------------------------------------------- which units


def test_units_are_found_as_residual_blocks():
    assert [owner.name for owner in find_units(Plain())] == ["layer1", "layer2"]
    assert [owner.name for owner in find_units(Nested())] == ["stages.0.layers", "stages.1.layers"]
    assert find_units(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())) == ()
    assert find_units(resode.create("he_resnet20")) == ()
    assert find_units(resode.create("neural_ode")) == ()


def test_units_are_named_by_the_user():
    network = Plain()
    described = resode.set_gradient(network, "checkpointed", units=["layer2.*"])
    assert [(stage.name, stage.steps) for stage in described.stages] == [("layer2", 4)]
    assert type(network.layer1[0]) is Block
    described = resode.set_gradient(network, Checkpointed(every=1), units=["layer1", "layer2"])
    assert [(stage.name, stage.steps) for stage in described.stages] == [("units", 2)]
    assert type(network.layer2[0]) is Block
    plain = Plain()
    plain.load_state_dict(network.state_dict())
    assert_same(step(network, images()), step(plain, images()))
    assert chain_owners(network)[0].names == ("layer1", "layer2")
    with pytest.raises(InputError, match="take stored or checkpointed"):
        resode.set_gradient(network, "reversible", units=["layer1.*"])
    assert chain_owners(network)[0].gradient == Checkpointed(every=1)
    resode.fit_memory(network, "1GB", SHAPE, 4, units=["layer2.*"])
    assert type(network.layer1) is nn.Sequential


def test_a_method_for_each_stage():
    network = Plain()
    described = resode.set_gradient(network, [{"name": "checkpointed", "every": 2}, "stored"])
    assert [stage.method for stage in described.stages] == [Checkpointed(every=2), Stored()]
    assert described.recomputed == 0.5
    assert repr(described) == (
        "gradient methods, 50% of a forward pass recomputed:\n"
        "  layer1: checkpointed, 4 steps, 4 recomputed in 2 segments\n"
        "  layer2: stored, 4 steps"
    )
    set_gradients(network, ["stored", "checkpointed"])  # as a run records it
    assert type(network.layer1[0]) is Block
    dynamic = resode.create("revnet38")
    described = resode.set_gradient(dynamic, "checkpointed")
    assert [stage.name for stage in described.stages] == [f"stages.{k}" for k in range(4)]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10**9, 32, 8), r"shape 32: \(channels, height, width\)"),
        ((10**9, (3, 32), 8), r"shape \(3, 32\)"),
        ((10**9, SHAPE, 0), "batch 0: a positive number"),
        (("lots", SHAPE, 8), "budget 'lots': bytes are needed"),
        ((True, SHAPE, 8), "budget True"),
        ((-1, SHAPE, 8), "budget -1"),
        (([], SHAPE, 8), r"budget \[\]"),
        ((10**9, (1, 16, 16), 8), r"shape \(1, 16, 16\), batch 8: a training step of the network fails"),
    ],
)
def test_wrong_calls_of_fit_memory_are_one_line(arguments, message):
    network = Plain()
    with pytest.raises(InputError, match=message) as e:
        resode.fit_memory(network, *arguments)
    assert "\n" not in str(e.value)
    assert type(network.layer1[0]) is Block


def test_other_wrong_calls_are_one_line():
    network = Plain()
    for call, message in (
        (lambda: resode.set_gradient("he_resnet20", "stored"), "resode.create builds one"),
        (lambda: resode.set_gradient(network, "reversible"), "take stored or checkpointed"),
        (lambda: resode.set_gradient(network, ["stored"] * 3), r"3 methods for 2 stages \(layer1, layer2\)"),
        (lambda: resode.set_gradient(network, "stored", units=["layer9.*"]), r"matches 'layer9\.\*' \(its"),
        (lambda: resode.set_gradient(network, "stored", units="layer1.*"), "a list of names"),
        (lambda: resode.set_gradient(network, "stored", units=3), "units 3: a list of names"),
        (lambda: resode.set_gradient(network, "stored", units=[]), "a list of names"),
        (lambda: resode.set_gradient(nn.Linear(2, 2), "checkpointed"), "no residual blocks to recompute"),
        (lambda: resode.fit_memory(network, 10**9, SHAPE, 8, precision="fp16"), "precision 'fp16'"),
        (lambda: resode.fit_memory(network, 10**9, SHAPE, 8, moments=-1), "moments -1"),
        (lambda: resode.set_gradient(resode.create("he_resnet20"), "stored", units=["*"]), "omit units"),
        (lambda: resode.set_gradient(network, Checkpointed), "a name, a mapping or a method is needed"),
        (lambda: resode.fit_memory(nn.Conv2d(3, 4, 3), 1000, SHAPE, 8), "no residual blocks to recompute"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert resode.set_gradient(nn.Linear(2, 2), "stored").stages == ()
    assert type(network.layer1[0]) is Block


def test_a_method_that_one_stage_refuses_changes_none():
    network = Plain()
    resode.set_gradient(network, "checkpointed")
    with pytest.raises(InputError, match="the plan is for 2 steps, here are 4"):
        resode.set_gradient(network, ["stored", {"name": "checkpointed", "plan": [1, 1]}])
    assert [owner.gradient for owner in chain_owners(network)] == [Checkpointed()] * 2


def test_units_that_cannot_be_recomputed_are_refused_by_name():
    network = Plain()
    parametrizations.spectral_norm(network.layer1[1].conv1)
    resode.set_gradient(network, "checkpointed")
    with pytest.raises(InputError, match=r"layer1\.1 writes its buffer .*take gradient stored"):
        network(images())

    class InPlace(Block):
        def forward(self, x):
            return super().forward(F.relu(x, inplace=True)) + 1

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(InPlace(4, 4), InPlace(4, 4)))
    resode.set_gradient(network, "checkpointed")
    with pytest.raises(InputError, match=r"1\.0 changes its input in place"):
        network(images())


def test_a_unit_that_is_used_twice_is_refused_by_a_budget():
    class Twice(Plain):
        def forward(self, x):
            x = self.bn1(self.conv1(x))
            return self.fc(self.layer2(self.layer1(self.layer1(x))).mean((2, 3)))

    with pytest.raises(InputError, match=r"layer1\.0 is used twice in one forward pass"):
        resode.fit_memory(Twice(), 10**9, SHAPE, 8, units=["layer1.*"])
    assert resode.fit_memory(Twice(), 10**9, SHAPE, 8).gradient.recomputed == 0


def test_units_on_several_devices_are_refused():
    network = Plain()
    network.layer1[1].conv1.to("meta")
    with pytest.raises(InputError, match=r"layer1\.1: is on the devices cpu and meta"):
        resode.set_gradient(network, "checkpointed")
    with pytest.raises(InputError, match="the network is on the devices cpu and meta"):
        resode.fit_memory(network, 10**9, SHAPE, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: nn.init.ones_(network.layer1[0].conv1.weight), "a parameter was changed"),
        (lambda network: network.eval(), r"train\(\) or eval\(\) was called"),
    ],
)
def test_changes_before_the_backward_pass_are_errors(change, message):
    _, network = pair()
    loss = network(images()).sum()
    change(network)
    with pytest.raises(RuntimeError, match=message):
        loss.backward()


def test_a_forward_that_was_replaced_is_refused():
    network = Plain()
    network.layer2[1].forward = lambda x: x
    with pytest.raises(InputError, match=r"layer2\.1: its forward was replaced"):
        resode.set_gradient(network, "checkpointed")
    assert type(network.layer1[0]) is Block


def test_a_forward_pass_that_is_dropped_frees_its_tensors():
    _, network = pair(method=TWO_LEVELS)
    with memory.measured(network.parameters()) as live:
        y = network(images())
        assert live.now > y.nbytes
        del y
        assert live.now == 0


def test_an_interrupted_forward_pass_leaves_nothing_behind():
    _, network = pair()
    network.layer1[2].bn2.forward = lambda x: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        network(images())
    del network.layer1[2].bn2.forward
    plain = Plain()
    plain.load_state_dict(network.state_dict())
    x = images()
    assert_same(step(network, x), step(plain, x))
