"""Models by name, and what every model survives."""

import copy
import io

import pytest
import torch

from resode import weights
from resode.errors import InputError
from resode.fields import TvNorm
from resode.gradients import Checkpointed
from resode.grids import TimeGrid
from resode.integrators import Euler
from resode.models import create, list_models, models, name_and_options
from resode.models.layouts import bottlenecks
from resode.models.resnet import ResNet
from resode.models.units import BottleneckUnit

SMALL = {
    "basic": lambda: create("he_resnet8", widths=(4, 8, 16)),
    "stride last, shortcut B": lambda: create("he_resnet8", widths=(4, 8, 16), shortcut="B", stride="last"),
    "pre-activation": lambda: create("he_preact_resnet14", widths=(4, 8, 16)),
    "bottlenecks": lambda: ResNet(BottleneckUnit, bottlenecks((4, 4, 6, 6), (1, 2, 1, 1))),
}


THOROUGH = pytest.mark.parametrize(
    "network",
    ["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name != "basic")],
    indirect=True,
)


@pytest.fixture(params=SMALL)
def network(request):
    torch.manual_seed(0)
    network = SMALL[request.param]()
    network(torch.randn(16, 3, 16, 16))  # statistics that are not those of the start
    return network.eval()


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name", ["he_resnet20", "he_preact_resnet20", "cifar_resnet18", "digits_resnet8", "mnist_resnet14"]
)
def test_a_model_takes_its_usual_input(name):
    network = create(name, classes=5).eval()
    assert network(torch.randn(2, *models.entry(name).shape)).shape == (2, 5)


def test_every_listed_model_has_a_summary_and_a_shape():
    for name in models.names():
        entry = models.entry(name)
        assert entry.summary
        assert entry.shape is not None
        assert {"classes", "in_channels"} <= set(entry.options())


def test_the_listed_models_are_these():
    depths = (20, 32, 44, 56, 110, 1202)
    assert models.names() == (
        *(f"he_resnet{depth}" for depth in depths),
        *(f"he_preact_resnet{depth}" for depth in depths),
        *(f"cifar_resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        "dynamic", "dynamicblocks", "ruthotto_haber", "chang", "imex_net", "pde_resnet", "neural_ode",
        "twisted",
        *(f"lm_resnet{depth}" for depth in (20, 32, 44, 56)),
        *(f"momentum_resnet{depth}" for depth in (20, 32, 44, 56)),
        "revnet38", "revnet110",
        "digits_resnet8", "digits_resnet14", "mnist_resnet8", "mnist_resnet14",
    )  # fmt: skip


def test_a_family_holds_every_depth():
    network = create("he_resnet26", classes=4, in_channels=1, widths=[4, 4, 4])
    assert len(network.layer1) == 4
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 4)


def test_grey_models_take_grey_images_and_others_on_demand():
    assert create("digits_resnet8").conv1.in_channels == 1
    assert create("digits_resnet8", in_channels=3).conv1.in_channels == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("he_resnet21", {}, "nearest are 20 and 26"),
        ("he_preact_resnet7", {}, "6n \\+ 2"),
        ("cifar_resnet20", {}, "did you mean 'cifar_resnet"),
        ("he_resnet20", {"width": (4, 4, 4)}, "did you mean 'widths'"),
        ("he_resnet", {}, "did you mean 'he_resnet"),
    ],
)
def test_misspelt_names_and_options_are_named(name, options, message):
    with pytest.raises(InputError, match=message):
        create(name, **options)


def test_survives_deepcopy_and_state_dict(network):
    twin = copy.deepcopy(network)
    stored = io.BytesIO()
    torch.save(network.state_dict(), stored)
    twin.load_state_dict(torch.load(io.BytesIO(stored.getvalue()), weights_only=True))
    assert torch.equal(twin(X), network(X))


def test_survives_channels_last(network):
    expected = network(X)
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(X.to(memory_format=torch.channels_last)), expected)


def test_survives_float64(network):
    expected = network(X)
    logits = network.double()(X.double())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), expected, rtol=1e-4, atol=1e-4)


def test_survives_bf16_autocast_with_gradients(network):
    expected = network(X)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(X)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        network.train()(X).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@THOROUGH
def test_survives_compilation_as_one_graph(network):
    twin = copy.deepcopy(network).train()
    compiled = torch.compile(network.train(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), twin(X))
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, msg=name)


@THOROUGH
def test_survives_export(network):
    exported = torch.export.export(network, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(exported.module()(X), network(X))
    torch.testing.assert_close(exported.module()(X[:3]), network(X[:3]))


@pytest.mark.parametrize("name", SMALL)
def test_survives_construction_without_memory(name):
    state = torch.get_rng_state()
    with torch.device("meta"):
        network = SMALL[name]()
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert torch.equal(torch.get_rng_state(), state)
    network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert network.eval()(X).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": Checkpointed()},
        {"states": TimeGrid.uniform(2, end=1.0)},
        {"norm": TvNorm(eps=1e-2), "scheme": Euler(), "controls": TimeGrid((0.0, 1.0))},
    ],
)
def test_a_network_created_with_objects_is_saved_as_its_stages(tmp_path, options):
    network = create("dynamicblocks", widths=[4, 8], **{"states": [0, 1, 2], **options}).eval()
    name, described = name_and_options(network)
    assert name == "dynamic"
    preprocessing = weights.Preprocessing((0.5,) * 3, (0.5,) * 3, (8, 8), 3, tuple("abcdefghij"))
    card = weights.Card(weights.Specification(name, described), preprocessing)
    weights.save(network, tmp_path / "net.safetensors", card)
    again = weights.load(tmp_path / "net.safetensors")
    assert again.options() == network.options()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), network(x))


def test_a_network_created_with_plain_options_keeps_its_name():
    assert name_and_options(create("dynamicblocks", widths=(4, 8)))[0] == "dynamicblocks"


def test_models_are_listed_by_a_pattern():
    assert list_models() == list(models.names())
    assert list_models("momentum_resnet[45]*") == ["momentum_resnet44", "momentum_resnet56"]
    assert list_models("momentum") == list_models("momentum*")
    assert list_models("nothing*") == list_models("[") == []
    with pytest.raises(InputError, match="pattern 3: a text"):
        list_models(3)
