"""Foreign checkpoints of every depth give the foreign network's logits."""

import pytest
import torch

from resode import weights
from resode.errors import InputError
from resode.interop import CIFAR10, FORMATS, convert
from tests.interop.foreign import Akamaster, Fattorib, Kuangliu, synthesise

X = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
slow = pytest.mark.slow


def checkpoint(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    return path


def parallel(network):
    return {f"module.{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("format", "network", "depth", "model"),
    [
        *(("akamaster", Akamaster, depth, "he_resnet") for depth in (8, 20, 32, 44, 56, 110)),
        pytest.param("akamaster", Akamaster, 1202, "he_resnet", marks=slow),
        *(("fattorib", Fattorib, depth, "he_resnet") for depth in (8, 20, 32, 44, 56)),
        ("kuangliu", Kuangliu, 18, "cifar_resnet"),
        *(
            pytest.param("kuangliu", Kuangliu, depth, "cifar_resnet", marks=slow)
            for depth in (34, 50, 101, 152)
        ),
    ],
)
@torch.no_grad()
def test_logits_equal_those_of_the_foreign_network(tmp_path, format, network, depth, model):
    dtype = torch.float32 if network is Kuangliu and depth > 100 else torch.float64  # or it has 0.5 GB
    theirs, x = synthesise(network(depth)).to(dtype), X.to(dtype)
    content = {
        "akamaster": {"state_dict": parallel(theirs), "best_prec1": 90.0},
        "fattorib": theirs.state_dict(),
        "kuangliu": {"net": parallel(theirs), "acc": 95.0, "epoch": 200},
    }[format]
    path, expected = checkpoint(tmp_path, content), theirs(x)
    del theirs, content
    conversion = convert(format, path, model=f"{model}{depth}")
    logits = conversion.module(x)
    assert logits.dtype == dtype
    scale = expected.abs().max()
    assert 1e-2 < scale < 1e4
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=5e3 * eps)
    assert conversion.module.bn1.num_batches_tracked == 7


@pytest.mark.parametrize("format", FORMATS)
def test_a_conversion_is_a_weights_file_with_its_normalisation(tmp_path, format):
    network = {"akamaster": Akamaster, "fattorib": Fattorib, "kuangliu": Kuangliu}[format]
    depth = 18 if format == "kuangliu" else 8
    model = f"cifar_resnet{depth}" if format == "kuangliu" else f"he_resnet{depth}"
    path = checkpoint(tmp_path, synthesise(network(depth)).float().state_dict())
    conversion = convert(format, path, model=model)
    weights.save(conversion.module, tmp_path / "ours.safetensors", conversion.card)
    module = weights.load(tmp_path / "ours.safetensors")
    assert module.card == conversion.card
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    statistics = (
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        if format == "kuangliu"
        else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    torch.testing.assert_close(module.preprocessing(images), (images / 255 - mean) / std)
    assert module.preprocessing.classes == CIFAR10
    assert module.card.training["imported"]["format"] == format
    assert module.card.training["classes"] == "assumed"
    assert module.card.assumes_classes
    assert torch.equal(module(X.float()), conversion.module(X.float()))


def test_another_number_of_classes_is_read_from_the_file(tmp_path):
    path = checkpoint(tmp_path, synthesise(Akamaster(8, classes=100)).state_dict())
    conversion = convert("akamaster", path, model="he_resnet8")
    assert conversion.module(X).shape == (2, 100)
    assert conversion.card.preprocessing.classes[:2] == ("0", "1")


def test_files_without_batch_counters_are_read(tmp_path):
    state = {n: t for n, t in Akamaster(8).state_dict().items() if "num_batches" not in n}
    conversion = convert("akamaster", checkpoint(tmp_path, state), model="he_resnet8")
    assert conversion.module.bn1.num_batches_tracked == 0


def test_unused_parameters_are_listed_and_not_imported(tmp_path):
    theirs = Fattorib(20)
    conversion = convert("fattorib", checkpoint(tmp_path, theirs.state_dict()), model="he_resnet20")
    assert set(conversion.unused) == {
        name for name in theirs.state_dict() if "conv_block" in name or "_block.bn" in name
    }
    assert conversion.unused_parameters == 97_536
    assert sum(p.numel() for p in conversion.module.parameters()) == 304_378
    assert conversion.card.specification.options["stride"] == "last"


def test_conversion_keeps_the_random_state(tmp_path):
    path = checkpoint(tmp_path, Akamaster(8).state_dict())
    state = torch.get_rng_state()
    convert("akamaster", path, model="he_resnet8")
    assert torch.equal(torch.get_rng_state(), state)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("format", "model", "content", "message"),
    [
        ("akamaster", "he_resnet20", Akamaster(8).state_dict(), "looks like he_resnet8, not he_resnet20"),
        ("fattorib", "he_resnet20", Fattorib(8).state_dict(), "looks like he_resnet8"),
        ("akamaster", "he_resnet8", Fattorib(8).state_dict(), "it looks like fattorib"),
        ("fattorib", "he_resnet8", {"state_dict": Akamaster(8).state_dict()}, "it looks like akamaster"),
        ("kuangliu", "cifar_resnet18", Akamaster(8).state_dict(), "it looks like akamaster"),
        ("akamaster", "he_resnet8", without(Akamaster(8).state_dict(), "linear.bias"), "fc.bias is missing"),
        ("akamaster", "he_resnet8", {"weight": torch.ones(3)}, "has no tensor 'weight'"),
        ("akamaster", "he_resnet8", {"linear.bias": torch.ones(3)}, "not of the format akamaster"),
        ("akamaster", "he_resnet21", {"linear.bias": torch.ones(3)}, "nearest are 20 and 26"),
        ("akamasta", "he_resnet8", {}, "did you mean 'akamaster'"),
        (
            "akamaster",
            "he_resnet8",
            Akamaster(8).state_dict() | {"conv1.weight": torch.ones(16, 1, 3, 3)},
            "conv1.weight is 16x1x3x3, not 16x3x3x3",
        ),
    ],
)
def test_a_file_that_is_not_the_model_is_named(tmp_path, format, model, content, message):
    with pytest.raises(InputError, match=message) as caught:
        convert(format, checkpoint(tmp_path, content), model=model)
    assert all("\n" not in message for message in caught.value.messages)
