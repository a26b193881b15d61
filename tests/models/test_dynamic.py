"""Networks of dynamic blocks: what every one of them survives, describes and refuses."""

import copy
import functools
import io
import math
import re
import shutil
import typing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import resode
from resode import cost, weights
from resode.blocks import DynamicBlock
from resode.errors import InputError
from resode.fields import Antisymmetric, Double, Hamiltonian, Parabolic
from resode.gradients import Stored
from resode.grids import TimeGrid
from resode.integrators import IMEX, RK4, Adaptive, FixedStep, Leapfrog, Momentum, StormerVerlet
from resode.models import create, models, name_and_options
from resode.models.dynamic import DynamicNet, dynamic
from resode.models.regridding import regrid
from resode.models.transitions import Connector, Head, Identity, Stem, Successive, UnitConnector
from resode.stages import Stage

TINY = (4, 6, 8, 8)


def networks_by_name():
    """Every registered name that gives a network of dynamic blocks with no option required, small."""
    for name in models.names():
        entry = models.entry(name)
        function = getattr(entry.factory, "func", entry.factory)
        if typing.get_type_hints(function).get("return") is not DynamicNet:
            continue
        options = entry.options()
        if all(p.default is not p.empty for p in options.values() if p.kind is p.KEYWORD_ONLY):
            usual = options["widths"].default if "widths" in options else ()
            yield name, {"widths": TINY[: len(usual)]} if usual else {}


NAMED = {
    **dict(networks_by_name()),
    "pde_resnet": {"widths": (4, 6), "blocks": (2, 1), "groups": 2, "where": (1,)},
    "dynamicblocks, one block": {"widths": (4, 6)},
    "ruthotto_haber, hamiltonian": {"kind": "hamiltonian", "widths": (4, 6, 8)},
    "ruthotto_haber, second order": {"kind": "second_order", "widths": (4, 6, 8), "last": 5},
    "chang, midpoint": {"kind": "midpoint", "widths": (4, 6, 8)},
    "chang, leapfrog": {"kind": "leapfrog", "widths": (4, 6, 8)},
    "dynamicblocks, Euler, decoupled": {
        "scheme": "euler", "widths": (4, 6), "states": {"steps": 4, "end": 2.0}, "controls": [0, 1]
    },
}  # fmt: skip

TIME = TimeGrid.uniform(2, 0.5)
COMPOSED = {
    "fields and schemes of all kinds": lambda: DynamicNet(
        [
            Stage(4, Parabolic(norm="tv", activation="tanh"), RK4(), TIME, [0, 0.5]),
            Stage(6, Hamiltonian(norm="batch"), StormerVerlet(), TIME, gradient="reversible"),
            Stage(6, Antisymmetric(gamma=0.1), "adams_bashforth2", [0, 0.1, 0.4], interpolation="constant"),
            Stage(8, "bottleneck", "ssprk3", 1, gradient={"name": "checkpointed", "every": 2}),
        ],
        stem=Stem(3, kernel=5, norm="group", activation="elu"),
        connector=[Connector(3, pool="stride", norm="tv"), Identity(), UnitConnector("B")],
        head=Head(norm="group", activation="relu"),
        classes=5,
    ),
    "adjoint and shared controls": lambda: DynamicNet(
        [
            Stage(4, Double("group", final_activation=False), "heun", TIME, gradient="adjoint"),
            Stage(5, {"name": "parabolic", "boundary": "periodic"}, "rk4", 2, interpolation="shared"),
        ],
        connector=Connector(pool="none", bias=True, norm=None, activation=None),
        last=7,
        classes=3,
    ),
    "units of all kinds between projected blocks": lambda: DynamicNet(
        [
            Stage(6, "double", "projected_euler", TIME, interpolation="constant"),
            Stage(8, {"name": "activated", "norm": "batch"}, {"name": "projected", "scheme": "heun"}, 1),
        ],
        connector=[
            UnitConnector(kind="activated", stride=1),
            Successive(
                [UnitConnector(kind="basic", widens="last"), UnitConnector("B", kind="bottleneck")], [7]
            ),
            Successive([UnitConnector("B", twist="odd")]),
        ],
        first=4,
        last=9,
        classes=3,
    ),
    "implicit and momentum": lambda: DynamicNet(
        [Stage(4, "preactivation", IMEX("field"), TIME), Stage(4, "parabolic", Momentum(0.5), 3)],
        stem=Stem(1, norm=None),
        connector=Identity(),
        classes=4,
    ),
    "one stage of one step": lambda: DynamicNet(
        [Stage(2, "parabolic", Leapfrog("published"), 1)], stem=1, classes=2
    ),
    "one step of a split state": lambda: DynamicNet(
        [Stage(4, Hamiltonian(norm="batch"), "symplectic_euler", 1)], head=Head("batch", "relu"), classes=2
    ),
}  # fmt: skip


@functools.cache
def prototype(name):
    if name in COMPOSED:
        torch.manual_seed(0)
        net = COMPOSED[name]()
    else:
        torch.manual_seed(0)
        net = create(name.partition(",")[0], classes=5, **NAMED[name])
    net(image(net, 16))  # running statistics that are not those of the start
    return net


def image(net, size=8, batch=8):
    height, width = (size, size) if isinstance(size, int) else size
    channels = net.stem_specification.in_channels
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def deep(name, many=17):
    """Whether it makes so many evaluations that a test of it belongs to the slow ones."""
    return sum(len(block.evaluations) for block in prototype(name).blocks()) > many


EVERY = [pytest.param(n, marks=pytest.mark.slow) if deep(n) else n for n in (*NAMED, *COMPOSED)]
every_network = pytest.mark.parametrize("name", EVERY)


@pytest.fixture
def net(name):
    """A copy in evaluation mode."""
    return copy.deepcopy(prototype(name)).eval()


def test_the_published_networks_are_among_these():
    published = {
        "dynamicblocks",
        "ruthotto_haber",
        "chang",
        "imex_net",
        "pde_resnet",
        "neural_ode",
        "lm_resnet20",
    }
    assert published | {"momentum_resnet20", "revnet38", "revnet110"} <= set(NAMED)


@every_network
def test_survives_deepcopy_and_state_dict(net):
    twin = copy.deepcopy(net)
    torch.manual_seed(1)  # `net` began with seed 0
    fresh = net.with_stages([block.stage for block in net.blocks()]).eval()
    x = image(net)
    assert torch.equal(twin(x), net(x))
    assert not torch.equal(fresh(x), net(x))
    stored = io.BytesIO()
    torch.save(net.state_dict(), stored)
    fresh.load_state_dict(torch.load(io.BytesIO(stored.getvalue()), weights_only=True))
    assert torch.equal(fresh(x), net(x))


@every_network
def test_survives_another_image_size_and_batch(net):
    """An adaptive solver chooses its steps for the whole batch, within its tolerance."""
    adaptive = any(isinstance(block.stage.integrator, Adaptive) for block in net.blocks())
    tolerance = 1e-2 if adaptive else 1e-3
    for size in ((8, 8), (5, 7), (9, 4)):
        logits = net(image(net, size, 3))
        assert logits.shape == (3, net.classes)
        assert logits.isfinite().all()
        alone = net(image(net, size, 3)[:1])
        torch.testing.assert_close(logits[:1], alone, rtol=tolerance, atol=tolerance)


@every_network
def test_survives_float64(net):
    x = image(net)
    expected = net(x)
    logits = net.double()(x.double())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), expected, rtol=2e-2, atol=2e-2)


@every_network
def test_survives_channels_last(net):
    x = image(net)
    expected = net(x)
    net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        net(x.contiguous(memory_format=torch.channels_last)), expected, rtol=2e-2, atol=2e-2
    )


@every_network
def test_survives_bf16_autocast_with_gradients(net):
    x = image(net)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x)
    assert (logits.float() - expected).norm() < 0.2 * expected.norm() + 0.1
    with torch.autocast("cpu", torch.bfloat16):
        loss = net.train()(x).float().square().sum()
    loss.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None or name.endswith("scheme.k"), name
        assert p.grad is None or p.grad.isfinite().all(), name


@every_network
def test_every_parameter_gets_a_gradient(net):
    """Nothing is dead weight, in float64 too; a gradient is zero at most where a network stands still."""
    net.double().train()(image(net, 16).double()).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


@every_network
def test_is_created_again_from_its_name_and_options(net, tmp_path):
    made = name_and_options(net)
    again = create(made[0], **made[1]).eval()
    again.load_state_dict(net.state_dict())
    x = image(net)
    assert torch.equal(again(x), net(x))
    assert [b.stage for b in again.blocks()] == [b.stage for b in net.blocks()]


@every_network
def test_is_created_from_its_plain_data(net):
    """`options` as YAML: every stage, stem, connector and head."""
    data = yaml.safe_load(yaml.safe_dump(net.options()))
    again = create("dynamic", **data).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(image(net)), net(image(net)))
    assert [b.stage for b in again.blocks()] == [b.stage for b in net.blocks()]
    assert again.options() == net.options()


@every_network
def test_a_weights_file_holds_the_whole_network(net, tmp_path):
    path = tmp_path / "net.safetensors"
    half = (0.5,) * net.stem_specification.in_channels
    names = tuple(f"class {k}" for k in range(net.classes))
    preprocessing = weights.Preprocessing(half, half, (8, 8), len(half), names)
    weights.save(net, path, weights.Card(weights.Specification(*name_and_options(net)), preprocessing))
    assert torch.equal(weights.load(path)(image(net)), net(image(net)))


# ------------------------------------------------------------ one graph


def plain_gradients(net):
    """The same network with stored gradients; None where its steps are not fixed."""
    if not all(isinstance(block.stage.integrator, FixedStep) for block in net.blocks()):
        return None
    stages = [replace(block.stage, gradient=Stored()) for block in net.blocks()]
    new = net.with_stages(stages)
    new.load_state_dict(net.state_dict())
    return new.train()


def compared(net, **options):
    """A training step, compiled and eager: values, gradients, running statistics."""
    twin, x = copy.deepcopy(net), image(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, **options)
    found, expected = compiled(x), twin(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            torch.testing.assert_close(
                p.grad, q.grad, rtol=1e-3, atol=1e-3 * (1 + q.grad.abs().max().item()), msg=name
            )
    for (name, p), q in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)


def traced():
    """Every network that is not another one with more steps or stages: of a family its first depth."""
    families = set()
    for name in (*NAMED, *COMPOSED):
        family = re.sub(r"\d+$", "", name)
        if family not in families and not deep(name, 40):
            yield pytest.param(name, marks=pytest.mark.slow) if deep(name, 6) else name
        families.add(family)


@pytest.mark.parametrize("name", list(traced()))
def test_survives_compilation_as_one_graph(name):
    net = plain_gradients(prototype(name))
    if net is not None:
        compared(net, backend="aot_eager", fullgraph=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("name", ["dynamicblocks, Euler, decoupled", "one step of a split state"])
def test_survives_the_full_compiler(name):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler: install g++ or clang")
    compared(plain_gradients(prototype(name)), fullgraph=True)


# ------------------------------------------------------------ description


LABELS = "field", "scheme", "states", "controls", "evaluations", "parameters", "multiply-adds", "memory"


@every_network
def test_printing_describes_every_block(net):
    text = str(net)
    assert text == net.explain()
    assert text.startswith(f"DynamicNet, {cost.parameters(net):,} parameters")
    stages = re.split(r"\n  stage \d+\n", text)[1:]
    assert len(stages) == len(list(net.blocks()))
    for block, text in zip(net.blocks(), stages, strict=True):
        stage, integrator = block.stage, block.stage.integrator
        for label in (
            "field",
            "scheme",
            "states",
            "controls",
            "evaluations",
            "parameters",
            "multiply-adds",
            "memory",
        ):
            assert re.search(rf"^    {label} +\S", text, re.M), label
        assert stage.field.equation in text
        assert integrator.equation in text
        assert str(stage.states) in text
        assert str(block.controls.grid) in text
        assert f"{cost.parameters(block):,}" in text
        assert integrator.order is None or f"order {integrator.order}" in text


def test_printed_costs_depend_on_image_and_batch():
    net = create("ruthotto_haber", widths=(4, 6, 8))
    text = net.explain((3, 20, 12), batch=7)
    assert "images 3x20x12 to 10 classes" in text
    assert re.findall(r"each (\w+)", text) == ["4x20x12", "6x10x6", "8x5x3"]
    work = [3 * 2 * 9 * c * c * h * w / 1e6 for c, h, w in ((4, 20, 12), (6, 10, 6), (8, 5, 3))]
    assert re.findall(r"([\d.,]+) M an image", text) == [f"{x:,.1f}" for x in work]
    assert text.count("at batch 7, gradient stored") == 3


def test_explaining_changes_nothing():
    net = copy.deepcopy(prototype("revnet38"))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    net.train()
    str(net)
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@every_network
def test_a_trajectory_leads_to_the_logits(net):
    x = image(net)
    times, states = net.trajectory(x)
    blocks = list(net.blocks())
    assert len(times) == len(states) == sum(len(b.stage.states.nodes) for b in blocks)
    assert times[0] == 0
    assert times[-1] == pytest.approx(sum(b.stage.states.end - b.stage.states.start for b in blocks))
    assert all(a <= b for a, b in pairwise(times))
    before, *_, after = net.between()
    last = states[-1] if after is None else after(states[-1])
    torch.testing.assert_close(net.head(last), net(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(states[0], net.stem(x) if before is None else before(net.stem(x)))


def warned(states, integrator="euler", norm=None):
    torch.manual_seed(0)
    field = {"name": "parabolic", "norm": norm}
    return DynamicNet([Stage(4, "preactivation", "euler", 1), Stage(4, field, integrator, states)])


def test_a_warning_names_the_block_the_bound_and_the_fix():
    (line,) = warned([0, 5.0]).warnings()
    assert re.match(
        r"stage 2: Euler is linearly stable up to h = [\d.]+ \(a spectral radius of at most ", line
    )
    factor = int(re.search(r"refine\((\d+)\)", line)[1])
    same = regrid(warned([0, 5.0]), states=[None, TimeGrid((0.0, 5.0)).refine(factor)])
    assert same.warnings() == []
    assert line.removeprefix("stage 2: ") in str(warned([0, 5.0]))
    assert warned([0, 5.0], norm="tv").warnings() == []
    assert "at every step" in warned([0, 1e-3], "two_step_midpoint").warnings()[0]


def test_the_stability_bound_depends_on_the_size_of_the_states():
    """Twice pooled, 32 x 20 pixels are 8 x 5."""
    torch.manual_seed(0)
    field = {"name": "parabolic", "norm": None}
    net = DynamicNet([Stage(4, field, "euler", [0, 9.0])] * 3)
    for number, (block, size) in enumerate(zip(net.blocks(), ((32, 20), (16, 10), (8, 5)), strict=True)):
        assert net.warnings(32, 20)[number] == f"stage {number + 1}: {block.stability(*size)}"


# ------------------------------------------------------------ errors

STAGE = {"width": 4, "field": "parabolic", "integrator": "euler", "states": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "at least one stage"),
        ({"stages": 3}, "stages is a list of mappings.*not 3"),
        ({"stages": None}, "stages is a list of mappings"),
        ({"stages": "parabolic"}, "stages is a list of mappings"),
        ({"stages": STAGE}, "stages is a list of mappings"),
        ({"stages": [STAGE, "parabolic"]}, "stage 2: a stage is a mapping, not 'parabolic'"),
        ({"stages": [STAGE, None]}, "stage 2: a stage is a mapping, not None"),
        ({"stages": [{**STAGE, "widht": 3}]}, "stage 1: .*no option 'widht'; did you mean 'width'"),
        ({"stages": [{**STAGE, 7: 3}]}, "stage 1: .*no option '7'"),
        ({"stages": [{"width": 4}]}, "stage 1: a stage needs field, integrator, states"),
        ({"stages": [{**STAGE, "width": "16"}]}, "stage 1: a stage of width '16': a positive integer"),
        ({"stages": [STAGE], "stem": 3}, "a stem is a mapping, not 3"),
        ({"stages": [STAGE], "stem": {"norm": "btach"}}, "unknown norm 'btach'; did you mean 'batch'"),
        ({"stages": [STAGE], "stem": {"kernel": 2}}, "stem: kernel 2; 1 or 3 or 5 or 7 is needed"),
        ({"stages": [STAGE], "stem": {"bias": "no"}}, "stem: bias 'no'; true or false is needed"),
        ({"stages": [STAGE], "stem": {"in_channels": 1}}, "in_channels is an option of the network"),
        ({"stages": [STAGE], "head": ["relu"]}, "a head is a mapping"),
        ({"stages": [STAGE], "head": {"activation": "rellu"}}, "did you mean 'relu'"),
        ({"stages": [STAGE] * 2, "connector": "layr"}, "unknown connector 'layr'; did you mean 'layer'"),
        ({"stages": [STAGE] * 2, "connector": 5}, "connector 5: expected a name or a mapping with a name"),
        ({"stages": [STAGE] * 2, "connector": None}, "connector None: expected a name"),
        (
            {"stages": [STAGE] * 2, "connector": ["layer"] * 3},
            "3 connectors for 2 widths: give 1, or one for all",
        ),
        ({"stages": [STAGE] * 2, "connector": {"name": "layer", "pool": "avrage"}}, "did you mean 'average'"),
        (
            {"stages": [STAGE, {**STAGE, "width": 6}], "connector": "identity"},
            "cannot change 4 channels to 6",
        ),
        ({"stages": [{**STAGE, "width": 6}, STAGE], "connector": "unit"}, "use shortcut B"),
        ({"stages": [STAGE] * 2, "connector": {"name": "unit", "kind": "basik"}}, "did you mean 'basic'"),
        ({"stages": [STAGE] * 2, "connector": {"name": "unit", "widens": 2}}, "widens 2; first or last"),
        ({"stages": [STAGE] * 2, "connector": {"name": "unit", "stride": 3}}, "stride 3; 1 or 2 is needed"),
        (
            {
                "stages": [STAGE],
                "first": 2,
                "connector": {"name": "unit", "shortcut": "B", "kind": "bottleneck"},
            }
            | {"last": 6},
            "a bottleneck has a multiple of 4 channels, not 6",
        ),
        (
            {"stages": [STAGE] * 2, "connector": {"name": "sequence", "parts": ["unit"], "widths": [4]}},
            "sequence: 1 connectors and 1 widths; one width is needed between",
        ),
        ({"stages": [STAGE] * 2, "connector": {"name": "sequence", "parts": "unit"}}, "parts is a list"),
        ({"stages": [STAGE], "first": 0}, "first 0: a positive integer"),
        ({"stages": [STAGE], "classes": 0}, "classes 0: a positive integer"),
        ({"stages": [STAGE], "in_channels": "3"}, "in_channels '3': a positive integer"),
        ({"stages": [STAGE], "last": 4.5}, "last 4.5: a positive integer"),
        (
            {"stages": [{**STAGE, "controls": [0, 1, 2]}]},
            "stage 1: no evaluation of Euler .* nodes 2 of",
        ),
        ({}, "dynamic needs the option 'stages'"),
    ],
)
def test_invalid_options_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        create("dynamic", **options)
    assert all("\n" not in message for message in caught.value.messages)


def test_anything_but_a_stage_is_refused_with_its_number():
    with pytest.raises(InputError, match=r"stage 1: a Stage is needed, not 8; resode.create\('dynamic'\)"):
        DynamicNet([8])


def test_all_mistakes_of_all_stages_are_reported_at_once():
    stages = [
        {**STAGE, "width": "16", "field": "parabolik"},
        STAGE,
        {"widht": 4, "field": "parabolic"},
        {**STAGE, "integrator": "rk5", "states": [1, 0]},
    ]
    with pytest.raises(InputError) as caught:
        dynamic(stages=stages)
    numbers = [re.match(r"stage (\d)", line)[1] for line in caught.value.messages]
    assert numbers == ["1", "1", "3", "3", "4", "4"]


def test_all_control_nodes_without_use_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        dynamic(stages=[{**STAGE, "controls": [0, 1, 2]}, STAGE, {**STAGE, "controls": [0, 1, 5]}])
    assert [line[:7] for line in caught.value.messages] == ["stage 1", "stage 3"]


def test_blocks_of_a_network_are_dynamic_blocks_with_public_names():
    net = create("dynamicblocks", widths=(4, 6), scheme="euler")
    names = [name for name, _ in net.named_parameters()]
    node = ["bias", "conv.weight", "conv.bias", "norm.bias"]
    assert names == [
        "stem.conv.weight", "stem.conv.bias", "stem.norm.weight", "stem.norm.bias",
        *(f"stages.0.controls.{j}.{name}" for j in range(4) for name in node),
        "connectors.0.conv.weight", "connectors.0.conv.bias",
        "connectors.0.norm.weight", "connectors.0.norm.bias",
        "head.linear.weight", "head.linear.bias",
    ]  # fmt: skip
    assert all(isinstance(block, DynamicBlock) for block in net.stages)
    split = create("chang", widths=(4,))
    assert "stages.0.controls.2.G.conv.weight" in dict(split.named_parameters())
    assert "stages.0.scheme.k" in dict(create("lm_resnet14", widths=(4, 6, 8)).named_parameters())


def test_a_network_learns():
    """Ten steps of gradient descent on one batch lower the loss of each kind of gradient."""
    for name in ("dynamicblocks", "chang", "fields and schemes of all kinds", "adjoint and shared controls"):
        net = copy.deepcopy(prototype(name)).train()
        x, labels = image(net), torch.arange(8) % net.classes
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        losses = []
        for _ in range(10):
            loss = nn.functional.cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert math.isfinite(losses[-1])
        assert losses[-1] < 0.97 * losses[0], name  # 0.53 to 0.90


def test_the_library_offers_these_names():
    assert resode.create is create


def test_the_code_of_the_page_on_dynamic_blocks_runs():
    page = (Path(__file__).parents[2] / "docs" / "dynamic-blocks.md").read_text(encoding="utf-8")
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "dynamic-blocks.md", "exec"), scope)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(scope["twisted"].eval()(x), scope["heat"].eval()(x), rtol=1e-3, atol=1e-4)
    assert [b.stage.field.twist is not None for b in scope["twisted"].blocks()] == [True, True, False]
    assert all(b.stage.field.twist is not None for b in scope["turning"].blocks())
