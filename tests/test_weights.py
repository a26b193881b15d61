"""Weights files: what is saved is loaded, and nothing else."""

import contextlib
import copy
import json
import struct
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from resode import atomic, weights
from resode.errors import InputError, IntegrityError, ResourceError
from resode.models import create, models
from resode.weights import Card, Preprocessing, Specification, load, load_into, read_card, save

CLASSES = ("cat", "dog", "Σ-frog")
OPTIONS = {"classes": 3, "in_channels": 1, "widths": (4, 6, 8)}
PREPROCESSING = Preprocessing(mean=(0.25,), std=(0.5,), size=(8, 8), channels=1, classes=CLASSES)


@pytest.fixture
def card():
    return Card(Specification("he_resnet8", OPTIONS), PREPROCESSING, {"seed": 3, "errors": [1.5, None]})


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = create("he_resnet8", **OPTIONS)
    network(torch.randn(8, 1, 8, 8))
    return network


@pytest.fixture
def path(tmp_path, network, card):
    save(network, tmp_path / "network.safetensors", card)
    return tmp_path / "network.safetensors"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_round_trip_is_exact_bit_for_bit(tmp_path, network, card, dtype):
    network.to(dtype)
    save(network, tmp_path / "a.safetensors", card)
    loaded = load(tmp_path / "a.safetensors")
    assert same(loaded.state_dict(), network.state_dict())
    assert loaded.card == card
    assert not loaded.training
    assert type(loaded) is type(network)
    save(loaded, tmp_path / "b.safetensors", loaded.card)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_mixed_dtypes_are_kept(tmp_path, network, card):
    network.fc.double()
    save(network, tmp_path / "a.safetensors", card)
    assert same(load(tmp_path / "a.safetensors").state_dict(), network.state_dict())


def test_channels_last_is_written_contiguously(tmp_path, network, card):
    save(network.to(memory_format=torch.channels_last), tmp_path / "a.safetensors", card)
    tensors = load_file(tmp_path / "a.safetensors")
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert same(tensors, network.state_dict())


def test_the_file_is_little_more_than_its_tensors(tmp_path):
    network = create("he_resnet20")
    card = Card(Specification("he_resnet20"), Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32), 3, CLASSES))
    save(network, tmp_path / "a.safetensors", card)
    tensors = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert tensors < (tmp_path / "a.safetensors").stat().st_size < tensors + 100 * len(network.state_dict())


def test_loading_keeps_the_random_state(path):
    state = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_module_owns_its_memory(path):
    loaded = load(path)
    expected = copy.deepcopy(loaded.state_dict())
    path.write_bytes(bytes(path.stat().st_size))
    assert same(loaded.state_dict(), expected)


def test_card_and_preprocessing_are_not_in_the_state_dict(path, network):
    loaded = load(path)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    twin = copy.deepcopy(loaded)
    assert twin.card == loaded.card
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(twin(twin.preprocessing(images)), loaded(loaded.preprocessing(images)))
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    x = loaded.preprocessing(images)
    torch.testing.assert_close(compiled(x), loaded(x))


def test_a_shared_parameter_is_written_once_and_shared_again(tmp_path, monkeypatch):
    class Shared(nn.Module):
        def __init__(self, classes=10, in_channels=1):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = self.first

    monkeypatch.setattr(models, "_entries", dict(models._entries))
    models.register("shared")(Shared)
    module = Shared()
    save(module, tmp_path / "a.safetensors", Card(Specification("shared"), PREPROCESSING))
    assert set(load_file(tmp_path / "a.safetensors")) == {"first.weight", "first.bias"}
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.first.weight is loaded.second.weight
    assert same(loaded.state_dict(), module.state_dict())


def test_buffers_outside_the_file_take_its_dtype(tmp_path, monkeypatch):
    class Constant(nn.Module):
        def __init__(self, classes=10, in_channels=1):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("constant", torch.full((2,), 0.5), persistent=False)

    monkeypatch.setattr(models, "_entries", dict(models._entries))
    models.register("constant")(Constant)
    save(Constant().double(), tmp_path / "a.safetensors", Card(Specification("constant"), PREPROCESSING))
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.constant.dtype == torch.float64
    assert torch.equal(loaded.constant, torch.full((2,), 0.5, dtype=torch.float64))


# Preprocessing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_preprocessing_gives_the_input_of_the_network(tmp_path, network, card, dtype):
    save(network.to(dtype), tmp_path / "a.safetensors", card)
    loaded = load(tmp_path / "a.safetensors")
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    x = loaded.preprocessing(images)
    assert x.dtype == dtype
    exact = (images.double() / 255 - 0.25) / 0.5
    torch.testing.assert_close(x.double(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    torch.testing.assert_close(loaded.preprocessing(images.double() / 255), x)
    assert loaded(x).shape == (1, 3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "takes \\(N, 1, 8, 8\\)"),
        (torch.zeros(1, 8, 8), "takes \\(N, 1, 8, 8\\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "uint8 or floating point"),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        PREPROCESSING(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5, 0.5)}, "1 numbers each"),
        ({"std": (0.0,)}, "std finite and positive"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"size": (8,)}, "a positive height and width"),
        ({"classes": "abc"}, "must be a list"),
    ],
)
def test_an_invalid_preprocessing_is_refused(change, message):
    values = {"mean": (0.5,), "std": (0.5,), "size": (8, 8), "channels": 1, "classes": CLASSES}
    with pytest.raises(InputError, match=message):
        Preprocessing(**{**values, **change})


def test_values_that_json_cannot_hold_are_refused_by_the_card():
    with pytest.raises(InputError, match="JSON"):
        Card(None, PREPROCESSING, {"module": nn.Linear(1, 1)})
    with pytest.raises(InputError, match="JSON"):
        Specification("he_resnet8", {"classes": float("nan")})


# Corrupt, foreign and inconsistent files


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for function in (load, read_card):
        with pytest.raises(InputError, match="no such file"):
            function(tmp_path / "missing.safetensors")
        with pytest.raises(InputError, match="is a folder"):
            function(tmp_path)


def test_a_truncated_file_is_corrupt_wherever_it_ends(path, network):
    data = path.read_bytes()
    for length in (*range(0, 4000, 97), len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        for function in (load, read_card, lambda p: load_into(network, p)):
            with pytest.raises(IntegrityError) as caught:
                function(path)
            assert len(caught.value.messages) == 1
            assert "\n" not in str(caught.value)


def test_no_flipped_bit_is_silent(path, network, card):
    data, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    for place in torch.randint(len(data), (120,), generator=generator).tolist():
        harmed = bytearray(data)
        harmed[place] ^= 1 << place % 8
        path.write_bytes(harmed)
        for function in (load, lambda p: load_into(network, p)):
            try:
                function(path)
            except (IntegrityError, InputError):
                continue
            assert load_file(path).keys() == network.state_dict().keys(), place
            assert read_card(path) == card, place  # a bit that means nothing, such as the space that pads


def test_a_file_of_before_digests_is_read_and_known(path, network, card):
    old = replace(card, format=1).to_json()
    save_file(load_file(path), path, metadata={"resode": old})
    assert not read_card(path).sealed
    load(path)
    load_into(network, path)
    save_file(load_file(path), path, metadata={"resode": card.to_json()})
    with pytest.raises(IntegrityError, match="lacks the SHA-256"):
        load(path)


def test_another_kind_of_file_is_corrupt(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(IntegrityError, match="not a complete safetensors file"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_distinguished_from_a_corrupt_one(tmp_path, metadata):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", metadata=metadata)
    for function in (load, read_card):
        with pytest.raises(InputError, match=r"resode import.*in Python a network of yours"):
            function(tmp_path / "a.safetensors")


def rewrite(path, change):
    """Change the card of a file and nothing else."""
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()["resode"])
    text = change(values)
    text = json.dumps(values) if text is None else text
    write(path, text, load_file(path))


def write(path, text, tensors):
    """A file with this card and these tensors, and their digest if the card is JSON."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        text = weights.stamped(text, tensors)
    save_file(tensors, path, metadata={"resode": text})


MALFORMED = {
    "not JSON": lambda card: "{",
    "a list": lambda card: "[1]",
    "a number": lambda card: "3",
    "deep": lambda card: "[" * 100_000,
    "empty": lambda card: card.clear(),
    "no format": lambda card: card.pop("format") and None,
    "no preprocessing": lambda card: card.pop("preprocessing") and None,
    "no specification": lambda card: card.pop("specification") and None,
    "more than it knows": lambda card: card.update(more=1),
    "a mean of words": lambda card: card["preprocessing"].update(mean=["much"]),
    "two means": lambda card: card["preprocessing"].update(mean=[0.1, 0.2]),
    "no mean": lambda card: card["preprocessing"].update(mean=None),
    "a number for a name": lambda card: card["specification"].update(name=3),
    "options in a list": lambda card: card["specification"].update(options=[1]),
    "a training record in words": lambda card: card.update(training="long"),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_card_is_corrupt(path, change):
    rewrite(path, change)
    for function in (load, read_card):
        with pytest.raises(IntegrityError, match="card is malformed") as caught:
            function(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_newer_card_asks_for_a_newer_resode(path):
    rewrite(path, lambda card: card.update(format=weights.FORMAT + 1, surprise={}))
    with pytest.raises(InputError, match="upgrade resode"):
        load(path)


def test_a_damaged_header_is_corrupt(path):
    data = bytearray(path.read_bytes())
    data[:8] = struct.pack("<Q", 2**62)
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        load(path)


def test_an_unregistered_model_names_the_plugin(path):
    rewrite(path, lambda card: card["specification"].update(name="he_resnett8"))
    with pytest.raises(InputError, match=r"'he_resnett8'.*--plugin"):
        load(path)
    assert read_card(path).specification.name == "he_resnett8"


def test_an_option_that_the_model_does_not_take_is_named(path):
    rewrite(path, lambda card: card["specification"]["options"].update(depth=9))
    with pytest.raises(InputError, match="no option 'depth'"):
        load(path)


def test_a_module_of_the_users_own_is_loaded_into_one(tmp_path):
    torch.manual_seed(1)
    module, other = nn.Linear(2, 3), nn.Linear(2, 3)
    save(module, tmp_path / "a.safetensors", Card(None, PREPROCESSING))
    with pytest.raises(InputError, match=r"made in Python and is no registered model.*\(into\)"):
        load(tmp_path / "a.safetensors")
    assert load_into(other, tmp_path / "a.safetensors") == ()
    assert same(other.state_dict(), module.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("fc.bias"), "fc.bias is missing"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "more is unknown"),
        (lambda tensors: tensors.update({"fc.bias": torch.ones(7)}), "fc.bias is 7, not 3"),
        (lambda tensors: tensors.clear(), "conv1.weight is missing.*; [0-9]+ more"),
    ],
)
def test_tensors_that_are_not_the_models_are_listed(path, card, network, change, message):
    tensors = load_file(path)
    change(tensors)
    write(path, card.to_json(), tensors)
    with pytest.raises(IntegrityError, match=message) as caught:
        load(path)
    assert len(str(caught.value)) < 400
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(InputError, match=message):
        load_into(network, path)
    assert same(network.state_dict(), before)


# Into a module


def test_load_into_keeps_dtype_layout_and_mode(path, network):
    module = create("he_resnet8", **OPTIONS).double().to(memory_format=torch.channels_last)
    weight = module.layer1[0].conv1.weight
    assert load_into(module, path) == ()
    assert module.training
    assert module.layer1[0].conv1.weight is weight
    assert weight.dtype == torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight.float(), network.layer1[0].conv1.weight)


def test_load_into_takes_any_safetensors_file(tmp_path):
    save_file({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, tmp_path / "a.safetensors")
    module = nn.Linear(2, 3)
    load_into(module, tmp_path / "a.safetensors")
    assert torch.equal(module(torch.ones(1, 2)), torch.full((1, 3), 2.0))


def test_another_number_of_classes_only_when_asked(path, network):
    torch.manual_seed(5)
    module = create("he_resnet8", **{**OPTIONS, "classes": 7})
    head = copy.deepcopy(module.fc.state_dict())
    with pytest.raises(InputError, match=r"new_head=True"):
        load_into(module, path)
    assert load_into(module, path, new_head=True) == ("fc.weight", "fc.bias")
    assert same(module.fc.state_dict(), head)
    assert torch.equal(module.conv1.weight, network.conv1.weight)
    assert torch.equal(module.bn1.running_mean, network.bn1.running_mean)


def test_a_new_head_excuses_no_other_layer(path):
    module = create("he_resnet8", **{**OPTIONS, "widths": (4, 6, 10)})
    with pytest.raises(InputError, match="does not fit the module") as caught:
        load_into(module, path, new_head=True)
    assert "new_head=True" not in str(caught.value)


# Saving


def test_a_failed_save_leaves_the_old_file(path, network, card, monkeypatch):
    old = path.read_bytes()
    with torch.no_grad():
        network.conv1.weight.add_(1)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        save(network, path, card)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_path_below_a_file_is_named(tmp_path, network, card):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file/a\.safetensors"):
        save(network, tmp_path / "file" / "a.safetensors", card)


def test_a_module_without_data_is_not_saved(tmp_path, card):
    with torch.device("meta"):
        network = create("he_resnet8", **OPTIONS)
    with pytest.raises(InputError, match="meta device"):
        save(network, tmp_path / "a.safetensors", card)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module.module._orig_mod."])
def test_names_that_wrappers_gave_to_tensors_of_another_program_are_read(tmp_path, network, prefix):
    path = tmp_path / "wrapped.safetensors"
    save_file({prefix + name: tensor + 1 for name, tensor in network.state_dict().items()}, path)
    expected = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    load_into(network, path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_a_compiled_network_is_saved_and_filled_by_its_own_names(tmp_path, network, card):
    path = tmp_path / "compiled.safetensors"
    save(torch.compile(network), path, card)
    assert load_file(path).keys() == network.state_dict().keys()
    load_into(torch.compile(network), path)


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    holder = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    save_file(holder.state_dict(), tmp_path / "own.safetensors")
    assert load_into(holder, tmp_path / "own.safetensors") == ()
