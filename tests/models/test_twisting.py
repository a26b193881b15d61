"""Twisting any network: no change at first, weights are kept, the chosen convolutions are twisted."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import resode
from resode.errors import InputError
from resode.fields import Field, Parabolic
from resode.models import DynamicNet, name_and_options
from resode.models.transitions import Stem
from resode.models.twisting import explain, stages_of, twist, twisted_convolutions
from resode.operators.ties import TIES
from resode.operators.twist import TwistConv2d
from resode.stages import Stage

NETWORKS = {
    "he_resnet20": (3, 16, 16),
    "he_preact_resnet20": (3, 16, 16),
    "cifar_resnet18": (3, 16, 16),
    "cifar_resnet50": (3, 8, 8),
    "digits_resnet": (1, 8, 8),
}


def network(name="he_resnet20", **options):
    torch.manual_seed(0)
    return resode.create(name, **options).eval()


def images(shape, count=2):
    return torch.randn(count, *shape, generator=torch.manual_seed(1))


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "digits_resnet"])
@pytest.mark.parametrize("tie", TIES)
def test_nothing_changes_at_first(name, tie):
    model, x = network(name), images(NETWORKS[name])
    made = twist(model, tie=tie, form="separate").eval()
    assert torch.equal(made(x), model(x))
    for form in ("stacked", "fused"):
        torch.testing.assert_close(twist(model, tie=tie, form=form).eval()(x), model(x), rtol=1e-4, atol=1e-5)
    assert all(m.kernel_size == (3, 3) for m in made.modules() if isinstance(m, TwistConv2d))
    plain = [m for m in made.modules() if isinstance(m, nn.Conv2d) and not isinstance(m, TwistConv2d)]
    assert all(m.kernel_size != (3, 3) for m in plain)


def test_the_copy_shares_nothing_and_keeps_the_weights():
    model = network()
    before = copy.deepcopy(model.state_dict())
    made = twist(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(before) < set(made.state_dict())
    added = sum(p.numel() for name, p in made.named_parameters() if name not in before)
    assert added == sum(m.weight[:, :, 0, 0].numel() * 4 for m in model.modules()
                        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))  # fmt: skip


def test_a_training_step_with_the_twist_kept_at_zero_is_that_of_the_plain_network():
    plain = network().train()
    made = twist(plain, form="separate")
    for item in twisted_convolutions(made):
        item.layer.twist.requires_grad_(False)
    x, labels = images((3, 16, 16), 8), torch.arange(8)
    for module in (plain, made):
        optimizer = torch.optim.SGD(
            [p for p in module.parameters() if p.requires_grad], lr=0.1, momentum=0.9, weight_decay=1e-3
        )
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(module(x), labels).backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_twist_is_trained():
    made = twist(network().train(), [1, 2, 3])
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05, momentum=0.9)
    x, labels = images((3, 16, 16), 8), torch.arange(8)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(made(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(item.layer.twist.abs().max() > 0 for item in twisted_convolutions(made))


# ---------------------------------------------------------------- which


def chosen(model, where):
    return [item.name for item in twisted_convolutions(twist(model, where))]


def test_stages_names_patterns_and_functions_choose():
    model = network()
    everything = chosen(model, None)
    assert len(everything) == 19  # with the stem
    first = chosen(model, 1)
    assert first == [f"layer1.{unit}.conv{k}" for unit in range(3) for k in (1, 2)]
    assert chosen(model, "1, 3") == chosen(model, [1, 3]) == [*first, *chosen(model, "3")]
    assert chosen(model, "layer2.*.conv2") == [f"layer2.{unit}.conv2" for unit in range(3)]
    assert chosen(model, "conv1") == ["conv1"]
    assert chosen(model, lambda name, conv: conv.in_channels == 64) == chosen(model, [3])[1:]
    assert chosen(model, ["conv1", 1]) == ["conv1", *first]


def test_only_the_3x3_convolutions_of_bottlenecks_are_twisted():
    names = chosen(network("cifar_resnet50"), [1])
    assert names == [f"layer1.{unit}.conv2" for unit in range(3)]
    assert chosen(network("cifar_resnet50"), "layer1.0.conv1") == ["layer1.0.conv1"]  # a 1x1, by its name


def test_stages_are_counted_from_one():
    names = ["stem.conv", "encoder.stages.0.layers.1.conv", "encoder.stages.1.layers.0.conv"]
    assert stages_of(names) == {names[1]: 1, names[2]: 2}
    assert stages_of(["layer1.0.conv1", "layer4.1.conv2"]) == {"layer1.0.conv1": 1, "layer4.1.conv2": 4}
    assert stages_of(["conv1"]) == {}


def test_a_shared_convolution_stays_shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, y):
            return self.second(self.first(y))

    made = twist(Shared())
    assert made.first is made.second
    assert isinstance(made.first, TwistConv2d)


def test_a_second_twist_leaves_the_first():
    model = network()
    made = twist(twist(model, [1], tie="free"), [2], tie="odd")
    assert {item.stage: item.layer.tie for item in twisted_convolutions(made)} == {1: "free", 2: "odd"}


class Other(nn.Conv2d):
    """A convolution of its own kind."""

    def forward(self, y):
        return super().forward(y) * 2


@pytest.mark.parametrize(
    ("make", "where", "message"),
    [
        (network, "4", r"no 3x3 convolution in stage 4 \(there are 1, 2, 3\)"),
        (network, "layer1.0.conv9", "no convolution is named 'layer1.0.conv9'; did you mean"),
        (network, lambda *_: False, "none of the 19 convolutions is chosen"),
        (lambda: nn.Linear(2, 2), None, "Linear has no plain torch.nn.Conv2d"),
        (lambda: nn.Sequential(Other(3, 3, 3)), None, "Sequential has no plain torch.nn.Conv2d"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3)), [1], r"\(there are no stages\)"),
    ],
)
def test_nothing_to_twist_is_an_error(make, where, message):
    with pytest.raises(InputError, match=message) as caught:
        twist(make(), where)
    assert "\n" not in str(caught.value)


def test_invalid_options_are_refused_before_anything_is_copied():
    with pytest.raises(InputError, match="unknown tie 'konformal'"):
        twist(network(), tie="konformal")


# ---------------------------------------------------------------- dynamic blocks

DYNAMIC = {
    "parabolic": {"name": "ruthotto_haber", "widths": [4, 6], "kind": "parabolic"},
    "hamiltonian": {"name": "ruthotto_haber", "widths": [4, 8], "kind": "hamiltonian"},
    "midpoint": {"name": "chang", "kind": "midpoint", "widths": [4, 4, 6]},
    "units": {"name": "lm_resnet14", "widths": [4, 4, 8]},
    "toolbox": {"name": "dynamicblocks", "widths": [4, 4, 6]},
}
every_dynamic = pytest.mark.parametrize("options", DYNAMIC.values(), ids=list(DYNAMIC))


def generic(options, dtype=torch.float64):
    """A network of dynamic blocks with statistics and parameters of no special value."""
    net = network(**options).to(dtype)
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for n, b in net.named_buffers() if "running" in n)):
            tensor.add_(0.1 * torch.rand_like(tensor))
    return net


def twist_at_random(net):
    with torch.no_grad():
        for item in twisted_convolutions(net):
            item.layer.twist.normal_(std=0.1)
    return net


@every_dynamic
@pytest.mark.parametrize("tie", ["conformal", "free"])
def test_blocks_are_twisted_and_nothing_changes_at_first(options, tie):
    net, x = generic(options), images((3, 8, 12)).double()
    expected = net(x)
    made = resode.twist(net, tie=tie, degree=2)
    torch.testing.assert_close(made(x), expected, rtol=1e-10, atol=1e-12)
    items = twisted_convolutions(made)
    assert {item.stage for item in items} == {None, *range(1, len(net.stages) + 1)}
    assert all(block.stage.field.twist.degree == 2 for block in made.blocks())
    plain = [m for m in made.modules() if getattr(m, "kernel_size", None) == (3, 3)]
    assert all(isinstance(m, TwistConv2d) for m in plain)
    state = net.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in made.state_dict().items() if not n.endswith("twist"))
    assert set(made.state_dict()) - set(state) == {f"{item.name}.twist" for item in items}
    twist_at_random(made)
    assert not torch.allclose(made(x), expected, rtol=1e-3)
    assert torch.equal(net(x), expected)


@every_dynamic
def test_a_twisted_network_of_blocks_is_built_by_its_specifications(options):
    made = twist_at_random(resode.twist(generic(options), tie="saddle"))
    x = images((3, 8, 8)).double()
    name, described = name_and_options(made)
    assert name == "twisted"
    assert described["of"]["name"] == options["name"]
    for again in (resode.create(name, **described), resode.create("dynamic", **made.options())):
        again.double().eval().load_state_dict(made.state_dict())
        assert torch.equal(again(x), made(x))
    twin = copy.deepcopy(made)
    assert torch.equal(twin(x), made(x))
    assert name_and_options(twin) == name_and_options(made)
    assert made(images((3, 5, 9)).double()).shape == (2, 10)
    assert "K = W + X Wx + Y Wy (saddle)" in made.explain() or "K1, K2 = W + X Wx" in made.explain()


@every_dynamic
@pytest.mark.parametrize("where", ["2", None])
def test_a_twisted_network_is_regridded(options, where):
    made = twist_at_random(resode.twist(generic(options), where))
    net = resode.regrid(made, controls="keep")
    x = images((3, 8, 8)).double()
    torch.testing.assert_close(net(x), made(x), rtol=1e-12, atol=1e-12)
    fine = resode.regrid(made, states="double", controls="states")
    assert {i.stage for i in twisted_convolutions(fine)} == {i.stage for i in twisted_convolutions(made)}
    again = resode.create(*name_and_options(fine)[:1], **name_and_options(fine)[1])
    assert set(again.state_dict()) == set(fine.state_dict())


def test_stages_and_names_choose_blocks_and_transitions():
    net = network(**DYNAMIC["units"])
    everything = {i.name for i in twisted_convolutions(twist(net))}
    second = chosen(net, 2)
    assert second == [f"stages.1.controls.{j}.conv{k}" for j in range(1) for k in (1, 2)]
    assert chosen(net, "stages.1") == chosen(net, ["2"]) == second
    assert set(chosen(net, "1,2")) == set(chosen(net, "stages.0")) | set(second)
    assert chosen(net, "stem.*") == ["stem.conv"]
    assert chosen(net, "connectors.0.*") == ["connectors.0.conv1", "connectors.0.conv2"]
    assert everything == {*chosen(net, ["stages.*", "stem.*", "connectors.*"])}
    assert chosen(net, lambda name, conv: conv.in_channels == 3) == ["stem.conv"]
    assert chosen(twist(net, 1), 2) == [*chosen(net, 1), *second]
    assert [i.stage for i in twisted_convolutions(twist(net, 3))] == [3, 3]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (4, r"no 3x3 convolution in stage 4 \(there are 1, 2, 3\)"),
        ("stage.0", "no convolution is named 'stage.0'; did you mean 'stages.0'"),
        ("stages.0.controls.0.conv1", "no convolution is named 'stages.0.controls.0.conv1'"),
        ("connectors.0.conv2", r"connectors.0: is twisted as a whole or not at all; name 'connectors.0.\*'"),
    ],
)
def test_invalid_choices_in_dynamic_blocks_are_refused(where, message):
    with pytest.raises(InputError, match=message):
        twist(network(**DYNAMIC["units"]), where)


def test_a_second_twist_of_blocks_leaves_the_first():
    net = twist(twist(network(**DYNAMIC["units"]), [1, "stem.conv"], tie="free"), [2], tie="odd")
    assert {i.stage: i.layer.tie for i in twisted_convolutions(net)} == {None: "free", 1: "free", 2: "odd"}
    with pytest.raises(InputError, match=r"no 3x3 convolution in stage 1 \(there are 3\)"):
        twist(net, 1)
    with pytest.raises(InputError, match="none of the 2 convolutions is chosen"):  # they are 1x1
        twist(twist(network(**DYNAMIC["parabolic"])))


def test_modes_frozen_parameters_and_the_random_state_are_kept():
    net = generic(DYNAMIC["units"], torch.float32).train()
    net.stages[0].requires_grad_(False)
    net.connectors[0].eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = twist(net)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in made.stages[0].parameters())
    assert all(p.requires_grad for p in made.stages[1].parameters())
    assert made.training
    assert not any(m.training for m in made.connectors[0].modules())


def test_blocks_within_any_network_are_twisted():
    net = generic(DYNAMIC["parabolic"])
    other = nn.Sequential(net.stem, net.stages[0]).eval()
    made, x = twist(other), images((3, 8, 8)).double()
    torch.testing.assert_close(made(x), other(x), rtol=1e-10, atol=1e-12)
    assert isinstance(made[0].conv, TwistConv2d)
    assert made[1].stage.field.twist is not None
    assert other[1].stage.field.twist is None


def test_an_edited_network_and_a_field_without_the_option_are_refused():
    net = network(**DYNAMIC["parabolic"])
    net.head.extra = nn.Linear(1, 1)
    with pytest.raises(InputError, match="the DynamicNet was edited and differs from its specification"):
        twist(net)

    @dataclass(frozen=True)
    class Own(Field):
        def build(self, width):
            return nn.Conv2d(width, width, 3, padding=1)

    net = DynamicNet([Stage(4, Own(), "euler", 1)])
    with pytest.raises(InputError, match="the field Own cannot be twisted; name convolutions"):
        twist(net)
    assert chosen(net, "stem.*") == ["stem.conv"]


def test_a_twisted_network_of_blocks_is_trained_in_half_precision_and_as_one_graph():
    field = Parabolic(norm=None, groups=2, twist="conformal")
    made = twist_at_random(DynamicNet([Stage(4, field, "euler", 1)], stem=Stem(twist="free")))
    x = images((3, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        made(x).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())
    torch._dynamo.reset()
    traced = torch.compile(copy.deepcopy(made.eval()), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(x), made(x))


def test_the_report_names_the_blocks():
    net = network(**DYNAMIC["parabolic"])
    lines = explain(net, twist(net), (3, 32, 32))
    assert lines[0] == "stem.conv  conformal, 48 parameters added"
    assert lines[1] == f"stage 1  stages.0  conformal, {3 * 4 * 4 * 4:,} parameters added"
    assert lines[2] == f"stage 2  stages.1  conformal, {3 * 6 * 6 * 4:,} parameters added"
    assert len(lines) == 5


# ---------------------------------------------------------------- files, reports


def test_a_twisted_network_is_created_again():
    made = resode.twist(network(classes=7), [2], tie="saddle", coordinates="published")
    with torch.no_grad():
        for item in twisted_convolutions(made):
            item.layer.twist.normal_()
    name, options = name_and_options(made)
    assert name == "twisted"
    again = resode.create(name, **options).eval()
    again.load_state_dict(made.state_dict())
    x = images((3, 16, 16))
    assert torch.equal(again(x), made(x))
    assert name_and_options(copy.deepcopy(made)) == (name, options)
    twice = resode.twist(made, "layer1.*", tie="free")
    nested = resode.create(*name_and_options(twice)[:1], **name_and_options(twice)[1])
    assert set(nested.state_dict()) == set(twice.state_dict())
    assert name_and_options(resode.twist(nn.Sequential(nn.Conv2d(3, 3, 3)))) is None


def test_created_by_name():
    made = resode.create("twisted", of="he_resnet20", where=[1, 2], tie="free", classes=5)
    assert {item.stage for item in twisted_convolutions(made)} == {1, 2}
    assert made.fc.out_features == 5
    with pytest.raises(InputError, match="'of' is the name of a model"):
        resode.create("twisted", of=3)
    with pytest.raises(InputError, match="did you mean 'he_resnet20'"):
        resode.create("twisted", of="he_resnt20")


def test_the_published_recipes_twist_the_first_three_stages():
    found = {}
    for recipe in ("liuyao2021/resnet34-twist", "liuyao2021/resnet50-twist"):
        model = resode.Experiment.from_recipe(recipe).model
        with torch.device("meta"):
            made = resode.create(model.name, **model.options)
        items = twisted_convolutions(made)
        assert {item.stage for item in items} == {1, 2, 3}
        assert {item.layer.coordinates for item in items} == {"published"}
        found[recipe] = ({item.layer.tie for item in items}, len(items))
    assert list(found.values()) == [({"conformal"}, 26), ({"odd"}, 13)]  # 2 (3 + 4 + 6), and 3 + 4 + 6


def test_activated_units_send_the_activated_state_through_the_shortcut():
    unit = network("cifar_resnet18", activated=True).layer1[0]
    torch.nn.init.zeros_(unit.conv2.weight)
    y = torch.randn(2, 64, 4, 4, generator=torch.manual_seed(0))
    assert torch.equal(unit(y), F.relu(unit.bn1(y)))
    with pytest.raises(InputError, match="ResNet-50 has bottlenecks; take depth 18 or 34"):
        resode.create("cifar_resnet50", activated=True)


def test_the_report_counts_what_was_added():
    model = network()
    lines = explain(model, twist(model, [1]), (3, 32, 32))
    assert lines[0] == "stage 1  layer1.0.conv1  conformal, 1,024 parameters added"
    assert len(lines) == 6 + 2
    assert lines[-2] == "parameters     269,722 -> 275,866 (+2.3%)"
    assert lines[-1].startswith("multiply-adds  40.6 M -> 68.9 M")


@pytest.mark.parametrize("tie", ["conformal", "saddle"])
def test_a_network_of_conformal_twists_with_symmetric_kernels_does_not_see_a_quarter_turn(tie):
    """Of odd sizes, where a stride of 2 keeps the centre: 33, 17, 9. The other tie is the control."""
    network = resode.twist(resode.create("he_resnet20", widths=[4, 4, 8]).double().eval(), tie=tie)
    with torch.no_grad():
        for item in twisted_convolutions(network):
            weight = item.layer.weight
            weight.copy_(sum(torch.rot90(weight, k, (2, 3)) for k in range(4)) / 4)
            nn.init.normal_(item.layer.twist, std=0.1)
        x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
        difference = (network(torch.rot90(x, 1, (2, 3))) - network(x)).abs().max()
        size = network(x).abs().max()
    assert size > 0.01
    assert difference < 1e-10 * size if tie == "conformal" else difference > 1e-3 * size


def test_a_single_convolution_is_twisted():
    plain = nn.Conv2d(3, 4, 3)
    made = resode.twist(plain, form="separate")
    assert isinstance(made, TwistConv2d)
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(made(x), plain(x))


def test_a_convolution_with_hooks_is_refused_by_name():
    network = resode.create("digits_resnet8")
    network.layer2[0].conv1.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"^layer2\.0\.conv1: has hooks"):
        resode.twist(network)
    assert isinstance(resode.twist(network, 1).layer1[0].conv1, TwistConv2d)
