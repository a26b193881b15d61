"""A lifted ResNet is a network of dynamic blocks with the same logits, weights and statistics."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import resode
from resode import weights
from resode.errors import InputError
from resode.gradients import Checkpointed
from resode.integrators import Euler, ProjectedEuler
from resode.interop import convert
from resode.models import name_and_options
from resode.models.lifted import LiftedNet
from resode.models.lifting import lifting
from tests.interop.foreign import Akamaster, Fattorib, synthesise

SMALL = (4, 8, 12, 16)
OWN = [
    ("he_resnet20", {}, [3, 2, 2]),
    ("he_resnet14", {"stride": "last", "shortcut": "B"}, [1, 1, 2]),
    ("he_resnet8", {}, [1]),
    ("he_resnet8", {"stride": "last"}, [1]),
    ("he_preact_resnet20", {"classes": 7}, [3, 2, 2]),
    ("he_preact_resnet14", {"stride": "last"}, [1, 1, 2]),
    ("digits_resnet14", {}, [2, 1, 1]),
    ("cifar_resnet18", {"widths": SMALL}, [2, 1, 1, 1]),
    ("cifar_resnet50", {"widths": SMALL}, [2, 3, 5, 2]),
    ("cifar_resnet18", {"widths": SMALL, "activated": True}, [2, 1, 1, 1]),
]


def images(net: nn.Module, count: int = 3, side: int = 16) -> torch.Tensor:
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(count, first.in_channels, side, side, generator=torch.Generator().manual_seed(1))
    return x.to(next(net.parameters()))


def with_statistics(net: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with random affine weights and statistics of its own, in training mode."""
    torch.manual_seed(0)
    net.to(dtype).train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.2, 1.0)
                module.bias.normal_(0, 0.3)
        for _ in range(2):
            net(images(net, 16))
    return net


def logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result = net(x)
    return getattr(result, "logits", result)


@pytest.mark.parametrize(("name", "options", "steps"), OWN)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_resnet_is_lifted_exactly(name, options, steps, dtype, tolerance):
    net = with_statistics(resode.create(name, **options), dtype)
    before = copy.deepcopy(net.state_dict())
    new = resode.lift(net)
    assert net.training
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert not new.training
    assert [block.stage.states.steps for block in new.blocks()] == steps
    assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in net.parameters())
    x = images(net)
    a, b = logits(net.eval(), x), logits(new, x)
    assert float((a - b).abs().max()) <= tolerance * float(a.abs().max())
    a, b = logits(net.train(), x), logits(new.train(), x)  # statistics of the batch
    assert float((a - b).abs().max()) <= 10 * tolerance * float(a.abs().max())


@pytest.mark.parametrize(("name", "options", "steps"), OWN)
def test_every_tensor_is_an_old_one_bit_for_bit(name, options, steps):
    """theta(t) within the step of a unit is the unit's weights, its evaluation has the unit's statistics."""
    net = with_statistics(resode.create(name, **options))
    done = lifting(net)
    assert sorted(done.sources.values()) == sorted(net.state_dict())
    old, new = net.state_dict(), done.module.state_dict()
    assert all(torch.equal(old[source], new[key]) for key, source in done.sources.items())
    moved = done.transfer(dict(net.named_parameters()))
    assert moved.keys() == dict(done.module.named_parameters()).keys()


def test_theta_read_at_the_units_gives_their_weights_bit_for_bit():
    net = with_statistics(resode.create("he_resnet20"))
    block = resode.lift(net).stages[0]
    for k, unit in enumerate(net.layer1):
        for t in (k, k + 0.5):
            theta = block.controls.at(t)
            assert {n.replace("norm", "bn") for n in theta} == set(dict(unit.named_parameters()))
            assert all(torch.equal(v, unit.get_parameter(n.replace("norm", "bn"))) for n, v in theta.items())


@pytest.mark.parametrize(
    ("name", "options", "scheme", "field"),
    [
        ("he_resnet8", {}, ProjectedEuler(), "Double"),
        ("he_preact_resnet8", {}, Euler(), "Preactivation"),
        ("cifar_resnet50", {"widths": SMALL}, ProjectedEuler(), "Triple"),
        ("cifar_resnet18", {"widths": SMALL, "activated": True}, Euler(), "Activated"),
    ],
)
def test_the_kind_of_unit_decides_scheme_and_field(name, options, scheme, field):
    for block in resode.lift(resode.create(name, **options)).blocks():
        assert block.stage.integrator == scheme
        assert type(block.stage.field).__name__ == field
        assert set(block.stage.states.intervals) == {1.0}


@pytest.mark.parametrize(("name", "options", "steps"), OWN)
def test_its_name_and_options_build_it_again(name, options, steps):
    new = resode.lift(with_statistics(resode.create(name, **options)))
    kind, described = name_and_options(new)
    again = resode.create(kind, **described).double().eval()
    again.load_state_dict(new.state_dict())
    assert torch.equal(logits(again, images(again)), logits(new, images(new)))
    assert kind == "dynamic"


@pytest.mark.parametrize(
    ("format", "network", "model", "steps"),
    [("akamaster", Akamaster, "he_resnet20", [3, 2, 2]), ("fattorib", Fattorib, "he_resnet20", [2, 2, 3])],
)
def test_an_imported_checkpoint_is_lifted(format, network, model, steps, tmp_path):
    torch.save(synthesise(network(20)).state_dict(), tmp_path / "theirs.th")
    imported = convert(format, tmp_path / "theirs.th", model=model).module
    new = resode.lift(imported)
    assert [block.stage.states.steps for block in new.blocks()] == steps
    a, b = (logits(net, images(net)) for net in (imported, new))
    assert float((a - b).abs().max()) <= 1e-5 * float(a.abs().max())


@pytest.mark.parametrize("tie", ["conformal", "free"])
def test_a_twisted_resnet_is_lifted_with_twisted_fields(tie):
    twisted = resode.twist(resode.create("he_resnet14"), tie=tie, form="stacked")
    with torch.no_grad():
        for name, p in twisted.named_parameters():
            if name.endswith("twist"):
                p.normal_(0, 0.05)
    new = resode.lift(with_statistics(twisted))
    assert all(block.stage.field.twist.tie == tie for block in new.blocks())
    a, b = (logits(net.eval(), images(net)) for net in (twisted, new))
    assert float((a - b).abs().max()) <= 1e-12 * float(a.abs().max())
    assert name_and_options(new)[0] == "dynamic"


def test_units_twisted_apart_are_lifted_without_a_name():
    twisted = resode.twist(resode.create("he_resnet14"), ["layer1.*.conv2"])
    new = resode.lift(twisted)
    assert isinstance(new, LiftedNet)
    assert name_and_options(new) is None
    with pytest.raises(InputError, match=r"layer1.0.conv1 \(plain\) and layer1.0.conv2 \(conformal\)"):
        new.options()


def test_a_regridded_lift_has_the_same_theta_and_leads_to_a_flow():
    """The controls stay piecewise constant; each doubling halves the distance to the next, about."""
    net = with_statistics(resode.create("he_resnet14"))
    nets = [resode.lift(net)]
    for _ in range(6):
        nets.append(resode.regrid(nets[-1], states="double"))
    for t in (0.0, 0.5, 0.99, 1.0, 1.7):
        ours, theirs = (n.stages[0].controls.at(t) for n in (nets[0], nets[-1]))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    y = images(net, 1, 8).repeat(1, 6, 1, 1)[:, :16].abs()
    with torch.no_grad():
        ends = [n.stages[0](y) for n in nets]
    gaps = [float((a - b).norm()) for a, b in pairwise(ends)]
    assert gaps[-1] < gaps[0] / 16


def test_other_gradients_give_the_same_one():
    net = resode.lift(with_statistics(resode.create("he_resnet20"))).train()
    x, found = images(net), []
    for method in ("stored", "checkpointed"):
        copied = copy.deepcopy(net)
        resode.set_gradient(copied, method)
        copied(x).square().sum().backward()
        found.append({name: p.grad for name, p in copied.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-12)


def test_gradient_method_frozen_weights_and_preprocessing_are_kept(tmp_path):
    net = resode.create("he_resnet14", gradient=Checkpointed(every=2))
    net.conv1.weight.requires_grad_(False)
    preprocessing = weights.Preprocessing((0.5,) * 3, (0.2,) * 3, (32, 32), 3, tuple("0123456789"))
    net.preprocessing = preprocessing
    new = resode.lift(net)
    assert [p.requires_grad for p in new.stem.conv.parameters()] == [False]
    assert all(p.requires_grad for p in new.stages.parameters())
    assert all(isinstance(block.stage.gradient, Checkpointed) for block in new.blocks())
    assert new.preprocessing == preprocessing
    card = weights.Card(weights.Specification(*name_and_options(new)), preprocessing)
    weights.save(new, tmp_path / "lifted.safetensors", card)
    again = resode.load(tmp_path / "lifted.safetensors")
    assert torch.equal(logits(again, images(again)), logits(new, images(new)))


# ------------------------------------------------------------ someone else's networks


@pytest.fixture(scope="module", params=["basic", "bottleneck"])
def hugging_face(request) -> nn.Module:
    """A small ResNet of transformers, from a config, with statistics of its own."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], layer_type=request.param, num_labels=7
    )
    torch.manual_seed(0)
    network = transformers.ResNetForImageClassification(config).double()
    network(images(network, 8, 32))
    return network.eval()


def test_a_hugging_face_resnet_is_lifted_in_place(hugging_face):
    new = resode.lift(hugging_face)
    assert [block.stage.states.steps for block in new.blocks()][-1] == 2  # of 3, the first strides
    assert all(block.stage.integrator == ProjectedEuler() for block in new.blocks())
    assert new.classes == 7
    x = images(new, 3, 64)
    a, b = logits(hugging_face, x), logits(new, x)
    assert float((a - b).abs().max()) <= 1e-12 * float(a.abs().max())
    done = lifting(hugging_face)
    assert sorted(done.sources.values()) == sorted(hugging_face.state_dict())
    first = hugging_face.resnet.encoder.stages[1].layers[1]
    theta = new.stages[-1].controls.at(0.5)
    assert theta
    assert all(torch.equal(value, first.get_parameter(name)) for name, value in theta.items())


def test_a_lifted_foreign_network_is_a_network_of_dynamic_blocks(hugging_face, tmp_path):
    new, x = resode.lift(hugging_face), images(hugging_face, 2, 64)
    fine = resode.regrid(new, states="double")
    assert [b.stage.states.steps for b in fine.blocks()] == [2 * b.stage.states.steps for b in new.blocks()]
    times, states = new.trajectory(x)
    assert len(times) == len(states) == sum(b.stage.states.steps + 1 for b in new.blocks())
    assert list(times) == sorted(times)
    assert "branch of ResNet" in str(new)
    copied = copy.deepcopy(new).train()
    with torch.no_grad():
        for p in copied.stages.parameters():
            p.zero_()
    assert not torch.equal(logits(copied.eval(), x), logits(new, x))  # a copy has blocks of its own
    assert float((logits(new, x) - logits(hugging_face, x)).abs().max()) < 1e-12
    resode.set_gradient(new, "checkpointed")
    new.train()(x).sum().backward()
    assert all(p.grad is not None for p in new.parameters())


def test_a_lifted_foreign_network_stays_in_python(hugging_face):
    new = resode.lift(hugging_face)
    assert name_and_options(new) is None
    with pytest.raises(InputError, match=r"no file can hold this lifted network: a ResNetForImageC.* in P"):
        new.options()
    with pytest.raises(InputError, match="twist it, then lift it"):
        resode.twist(new)


class Unit(nn.Module):
    """y + F(y), with what is done to the sum."""

    def __init__(self, width=4, end=None, shortcut=None):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Sequential() if shortcut is None else shortcut
        self.end = nn.Identity() if end is None else end

    def forward(self, y, scale=None):
        f = self.conv(y).tanh()
        if scale is not None:
            f = f * scale
        f += self.shortcut(y)
        return f if isinstance(self.end, nn.Identity) else self.end(f)


class Net(nn.Module):
    def __init__(self, units, call=None, between=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.units = nn.ModuleList(units)
        self.head = nn.Linear(4, 5)
        self.call = (lambda unit, y: unit(y)) if call is None else call
        self.between = (lambda y: y) if between is None else between

    def forward(self, x):
        y = self.stem(x).relu()
        for unit in self.units:
            y = self.between(self.call(unit, y))
        return self.head(y.mean((2, 3)))


def chains(net):
    return [block.stage.states.steps for block in resode.lift(net).blocks()]


def test_units_of_ones_own_are_read_from_their_code():
    net = Net([Unit(), Unit(), Unit(end=nn.ReLU(inplace=True))]).double()
    new = resode.lift(net)
    assert [block.stage.integrator for block in new.blocks()] == [Euler(), ProjectedEuler()]
    assert chains(net) == [2, 1]
    torch.testing.assert_close(logits(new, images(net)), logits(net, images(net)), rtol=1e-12, atol=1e-12)


def test_what_is_computed_between_units_divides_a_chain():
    net = Net([Unit(), Unit(), Unit()], between=lambda y: 0.9 * y)
    assert chains(net) == [1, 1, 1]


def test_units_that_differ_in_a_layer_are_no_chain():
    different = Unit()
    different.conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
    assert chains(Net([Unit(), Unit(), different])) == [2, 1]


class InPlace(Unit):
    def forward(self, y):
        y.relu_()
        return y + self.conv(y)


class Multiplied(Unit):
    def forward(self, y):
        return y + self.conv(y) if y.mean() > 0 else y + y


def shared():
    units = [Unit(), Unit()]
    units[1].conv.weight = units[0].conv.weight
    return Net(units)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: Net([Unit(end=nn.GELU()), Unit(end=nn.GELU())]), r"units.0: it does not return y \+ F\(y\)"),
        (
            lambda: Net([Unit(shortcut=nn.Conv2d(4, 4, 1)), Unit(shortcut=nn.Conv2d(4, 4, 1))]),
            "units.0: its shortcut is no identity",
        ),
        (lambda: Net([InPlace(), InPlace()]), "units.0: changes its argument in place"),
        (lambda: Net([Multiplied(), Multiplied()]), "units.0: its forward depends on values"),
        (lambda: Net([Unit(), Unit()], call=lambda u, y: u(u(y))), "units.0: is used twice in one forward"),
        (lambda: Net([Unit(), Unit()], call=lambda u, y: u(y, scale=2.0)), "not called with one tensor"),
        (lambda: Net([]), "it has no residual blocks"),
        (shared, r"units.1.conv.weight is units.0.conv.weight; units with shared weights"),
        (lambda: nn.Linear(3, 3), "a Linear has no convolutions of images"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 3)), "does not take images of 3 channels"),
        (lambda: resode.create("dynamicblocks"), "a network of dynamic blocks already"),
        (lambda: "he_resnet20", r"lift 'he_resnet20': a network \(nn.Module\) is needed"),
    ],
)
def test_what_cannot_be_lifted_is_said_in_one_line(net, message):
    with pytest.raises(InputError, match=message) as caught:
        resode.lift(net())
    assert len(str(caught.value).splitlines()) == 1


def test_hooks_that_would_be_lost_are_refused():
    net = resode.create("he_resnet14")
    net.layer1[0].conv1.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"layer1.0.conv1 has forward hooks, which would be lost"):
        resode.lift(net)
